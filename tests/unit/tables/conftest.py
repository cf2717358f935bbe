"""Fixtures for the tests of the tables."""

from pathlib import Path

import pytest

from lorif_core.tables.store import Store
from tests.unit.tables.small_store import SPEC


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "index"))
    store.create(SPEC)
    return store
