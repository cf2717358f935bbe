"""Invariant: an update of a prefix changes only rows of the files under it."""

import gzip
import json
from pathlib import Path

import pytest

from flows.build import build
from flows.update import update
from lorif_core.errors import UserError
from lorif_core.storage.objects import Objects
from tests.integration.conftest import MakeConfig
from tests.integration.growing import Folder, codes_of

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")


@pytest.fixture
def folder(tmp_path: Path, corpus_file: Path) -> Folder:
    return Folder(tmp_path / "corpus", corpus_file)


def test_only_files_under_the_prefix_are_updated(make_config: MakeConfig, folder: Folder, tmp_path: Path) -> None:
    """A quarantined file outside the prefix stays quarantined, so that a later update reads it again."""
    corpus = tmp_path / "corpus"
    folder.put("a", range(20, 40))
    (corpus / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"id": "x", "text": "the cat"}\n' * 100)[:-20])
    config = make_config(
        tmp_path / "index", corpus=folder.section, curvature={"kind": "none"}, compute={"workers": 1}
    )
    first = build(config, publish_incomplete=True)
    rows = codes_of(config)
    assert [place for place, _ in json.loads(first.quarantined_json)] == ["cut.jsonl.gz"]

    folder.put("new-1", range(40, 50))
    folder.put("later", range(50, 60))
    folder.drop("a")
    second = update(config, prefix=f"{corpus}/new-")
    assert second.rows == 30 and second.changes["files"] == {"new": 1, "changed": 0, "moved": 0, "vanished": 0}
    assert second.quarantined_json == first.quarantined_json
    assert {name: codes_of(config)[name] for name in rows} == rows
    assert update(config, prefix=f"{corpus}/new-1.jsonl") == second, "nothing may be published without a change"
    receipts = [
        Objects(config.index, config.storage).get(entry.name)
        for entry in Objects(config.index, config.storage).names("runs")
    ]
    assert sorted((receipt["generation"], receipt["published"]) for receipt in receipts if receipt) == [
        (1, True), (2, False), (2, True),
    ]  # fmt: skip

    (corpus / "cut.jsonl.gz").unlink()
    folder.put("cut", range(60, 70))
    third = update(config)
    assert third.rows == 50 and third.quarantined_json == "[]"


@pytest.mark.parametrize("prefix", ["", "s3://elsewhere/corpus/"])
def test_a_prefix_outside_the_corpus_is_refused_before_any_work(
    make_config: MakeConfig, tmp_path: Path, prefix: str
) -> None:
    with pytest.raises(UserError, match="prefix"):
        update(make_config(tmp_path / "index"), prefix=prefix)
    assert not (tmp_path / "index").exists()
