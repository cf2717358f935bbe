"""Invariant: workers list a corpus of many bytes as this process does, with the same messages, and only once."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.build import build
from lorif_core.config import Config
from lorif_core.corpus import kept_listings, shards
from lorif_core.corpus.file_listing import list_file
from lorif_core.errors import LorifError
from lorif_core.lifecycle.plan import list_corpus, make_plan
from lorif_core.storage.objects import Objects
from lorif_core.tables.store import Store
from tasks.listing import list_on_workers
from tests.integration.conftest import MakeConfig

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")


@pytest.fixture
def distant(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A config with a corpus of two files, which count as so large that workers list them."""
    for name, value in (("_MOST_PARSED_HERE", 100), ("_MOST_COUNTED_HERE", 100)):
        monkeypatch.setattr(shards, name, value)
    monkeypatch.setattr(kept_listings, "_LEAST_BYTES", 1)
    monkeypatch.setattr(shards, "list_file", None)  # this process reads no file
    (tmp_path / "corpus").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "corpus" / f"{name}.jsonl", [{"id": f"{name}{i}", "text": "the cat"} for i in range(12)])
    return make_config(tmp_path / "index", corpus={"uri": str(tmp_path / "corpus")}, curvature={"kind": "none"})


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_build_lists_many_bytes_on_workers_and_once(distant: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    build(distant)
    assert Store(distant.index).latest().rows == 24
    assert len(Objects(distant.index, distant.storage).names("listing")) == 2
    kept = make_plan(distant, on_workers=None)
    monkeypatch.setattr(shards, "list_file", list_file)
    assert kept.shards == shards.list_shards(distant.corpus, distant.storage).shards


@pytest.mark.parametrize("harm", ["repeated id", "wrong id", "no column", "cut off", "not JSON"])
def test_messages_are_those_of_this_process(distant: Config, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    path = Path(distant.corpus.uri) / "c.jsonl"
    row = {"repeated id": {"id": "a3", "text": "t"}, "wrong id": {"id": None, "text": "t"}, "no column": {"id": 1}}
    write(path, [{"id": "c", "text": "t"}] if harm in ("repeated id", "wrong id") else [])
    with path.open("a") as file:
        file.write(json.dumps(row[harm]) + "\n" if harm in row else "")
    if harm == "cut off":
        path.rename(path.with_suffix(".jsonl.gz"))
        path.with_suffix(".jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00" + bytes(200))
    elif harm == "not JSON":
        path.write_text('{"id": "c", "text": "t"}\n{"id":')

    def outcome(on_workers: shards.ListFiles | None) -> tuple[Any, ...]:
        try:
            listing = list_corpus(distant, on_workers=on_workers)
        except LorifError as error:
            return type(error), str(error)
        return listing.shards, listing.damaged, listing.notes

    there = outcome(list_on_workers(distant))
    for entry in Objects(distant.index, distant.storage).names("listing"):
        Objects(distant.index, distant.storage).remove([entry.name])
    monkeypatch.setattr(shards, "list_file", list_file)
    assert there == outcome(None)
