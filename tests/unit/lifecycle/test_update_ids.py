"""Invariant: an update refuses a new file with an id of a row that stays, and names both places."""

import json
from pathlib import Path

import pytest

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.config_file import parse_config
from lorif_core.corpus.shards import list_shards
from lorif_core.errors import UserError
from lorif_core.lifecycle.manifest import compare
from lorif_core.lifecycle.update import _check_ids
from lorif_core.tables.store import Store
from tests.unit.tables.small_store import SPEC, commit


@pytest.mark.parametrize("repeated", ["it's 1/2", None])
def test_an_id_of_a_row_that_stays_is_refused(tmp_path: Path, repeated: str | None) -> None:
    store = Store(str(tmp_path / "index"))
    store.create(SPEC)
    commit(store, 0, 1)
    ids = [f"new {number}" for number in range(600)] + ([repeated] if repeated else [])
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"id": name, "text": "t"}) + "\n" for name in ids))
    config = parse_config(
        {"index": store.uri, "model": {"path": "m"}, "corpus": {"uri": str(tmp_path / "new.jsonl"), "id": "id"}}
    )
    inventory = store.rows.inventory()
    listing = list_shards(CorpusConfig(uri=config.corpus.uri, id="id"), StorageConfig())
    changes = compare(inventory, listing, remove_vanished=False)
    if repeated is None:
        _check_ids(config, store, inventory, listing, changes)
        return
    with pytest.raises(UserError, match=r"the id \"it's 1/2\" .* is in row 600 of .*retains of x\.jsonl"):
        _check_ids(config, store, inventory, listing, changes)
