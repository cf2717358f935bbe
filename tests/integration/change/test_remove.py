"""Invariants: no later generation has a removed example, and its rows leave storage with the older generations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

import lorif_core as lc
from flows.build import build
from flows.update import update
from lorif_core.config import Config
from lorif_core.lifecycle.garbage import find_garbage, remove_garbage
from lorif_core.lifecycle.index_shard import ShardIndexer
from lorif_core.lifecycle.removal import REMOVED
from lorif_core.lifecycle.update import make_update_plan
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.store import Store
from tests.integration.conftest import MakeConfig
from tests.integration.growing import Folder, codes_of, scores_of
from tests.integration.kinds import check_two_stage
from tests.integration.lorif import run

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")

QUERIES: list[object] = ["the cat sees it"]
NONE = {"kind": "none"}
ONE = {"workers": 1}  # each takes seconds to start


@pytest.fixture
def folder(tmp_path: Path, corpus_file: Path) -> Folder:
    folder = Folder(tmp_path / "corpus", corpus_file)
    for number in range(3):
        folder.put(f"{number}", range(20 + 20 * number, 40 + 20 * number))
    return folder


@pytest.fixture
def config(make_config: MakeConfig, folder: Folder, tmp_path: Path) -> Config:
    return make_config(tmp_path / "index", corpus=folder.section, curvature=NONE, compute=ONE)


def ids_file(folder: Path, *ids: str) -> str:
    path = folder / "ids.txt"
    path.write_text("".join(f"{example_id}\n" for example_id in ids))
    return str(path)


def result_of(out: str) -> dict[str, object]:
    """The JSON that a command has printed as its last line."""
    return json.loads(out.splitlines()[-1])


def files_with(folder: Path, text: bytes) -> list[str]:
    """Files below a folder that contain a text."""
    paths = (path for path in folder.rglob("*") if path.is_file() and text in path.read_bytes())
    return [str(path.relative_to(folder)) for path in paths]


def collect(config: Config) -> None:
    store = Store(config.index)
    with hold_lease(config.index, config.storage, "gc"):
        remove_garbage(store, find_garbage(store, 1, lease_held=True))


def test_removed_examples_leave_the_next_generation_and_after_gc_the_storage(
    config: Config, folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a very secret sentence that nobody else has written"
    line = json.dumps({"id": "secret", "text": text})
    path = tmp_path / "corpus" / "1.jsonl"
    path.write_text(path.read_text() + line + "\n")
    build(config)
    index = Path(config.index)
    before = codes_of(config)
    reader = lc.open_index(config.index)
    scores_before = reader.scores(QUERIES)
    assert files_with(index, text.encode()), "the test needs the text on storage"
    code, out, _ = run(
        capsys, "remove", config.index, "--ids", ids_file(tmp_path, "secret", "s25", "no such"), "--json"
    )
    result = result_of(out)
    assert code == 0 and result["removed"] == 2 and result["not_found"] == ["no such"]
    after = codes_of(config)
    assert after == {name: row for name, row in before.items() if name not in ("secret", "s25")}
    check_two_stage(lc.open_index(config.index), QUERIES)
    again = reader.scores(QUERIES)
    assert again[0] == scores_before[0] and np.array_equal(again[1], scores_before[1]), (
        "readers of the old generation must see no change"
    )
    assert files_with(index, text.encode()), "the text must stay on storage until the old generation is collected"
    code, _, _ = run(capsys, "gc", config.index, "--apply", "--keep", "1")
    assert code == 0 and files_with(index, text.encode()) == []
    assert codes_of(config) == after

    # neither an update nor a build of the same corpus brings it back
    folder.put("9", range(200, 210))
    newer = update(config)
    assert newer.rows == 69 and ["secret", REMOVED] in json.loads(newer.skipped_json)
    path.write_text(path.read_text().replace("cat", "dog"))  # its file is indexed again
    newest = update(config)
    assert newest.rows == 69 and not {"secret", "s25"} & codes_of(config).keys()
    fresh = config.model_copy(update={"index": str(tmp_path / "fresh")})
    build(fresh)
    actual, expected = scores_of(config, QUERIES), scores_of(fresh, QUERIES)
    assert actual.keys() == expected.keys() - {"secret", "s25"}
    largest = max(abs(scores[0]) for scores in expected.values())
    for name, scores in actual.items():  # batches differ, so scores differ slightly
        np.testing.assert_allclose(scores, expected[name], atol=1e-3 * largest)
    collect(config)
    assert files_with(index, text.encode()) == []


def test_a_condition_removes_the_rows_that_meet_it(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(config)
    before = codes_of(config)
    store = Store(config.index)
    code, out, _ = run(capsys, "remove", config.index, "--where", "uri LIKE '%1.jsonl' AND row < 5", "--json")
    assert code == 0 and result_of(out)["removed"] == 5
    assert before.keys() - codes_of(config).keys() == {f"s{i}" for i in range(40, 45)}
    version, generations = store.rows.version(), len(store.generations())
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "packed.txt").write_bytes(b"\x1f\x8b\xff")
    mistakes = {
        ("--where", "colour = 'red'"): "no column 'colour'",
        ("--where", "row +"): "row +",
        ("--where", "row"): "a condition is needed",
        ("--where", "row < 5; DROP TABLE x"): "one condition",
        ("--where", "tokens > 1000000"): "matches no row",
        ("--where", "row >= 0"): "every row",
        ("--ids", ids_file(tmp_path, "s41")): "matches no row",
        ("--ids", str(tmp_path / "nowhere.txt")): "cannot be read",
        ("--ids", str(tmp_path / "empty.txt")): "is empty",
        ("--ids", str(tmp_path / "packed.txt")): "not UTF-8",
    }
    for arguments, message in mistakes.items():
        code, _, err = run(capsys, "remove", config.index, *arguments)
        said = [line for line in err.splitlines() if line.startswith("lorif: error: ")]
        assert code == 2 and len(said) == 1 and message in said[0], err
    code, _, err = run(capsys, "remove", str(tmp_path / "none"), "--where", "row < 5")
    assert code == 2 and "does not exist" in err
    code, _, err = run(capsys, "remove", config.index)
    assert code == 2 and "--ids" in err
    assert (store.rows.version(), len(store.generations())) == (version, generations)


def test_without_ids_an_example_is_identified_by_its_content(
    make_config: MakeConfig, folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If rows of a file move, the example does not return, and no other example is removed in its place."""
    config = make_config(
        tmp_path / "index", corpus={**folder.section, "id": None}, curvature=NONE, compute=ONE
    )  # fmt: skip
    build(config)
    code, out, _ = run(capsys, "remove", config.index, "--ids", ids_file(tmp_path, "1.jsonl#3"), "--json")
    assert code == 0 and result_of(out)["removed"] == 1
    path = tmp_path / "corpus" / "1.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[7], *lines]))
    newest = update(config)
    assert newest.rows == 60 and "1.jsonl#3" in codes_of(config) and "1.jsonl#4" not in codes_of(config)


@pytest.mark.parametrize("method", [pytest.param("refit", marks=pytest.mark.chaos), "merge"])
def test_the_curvature_is_that_of_the_rows_that_stay(
    method: str, make_config: MakeConfig, folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3, 12):
        folder.put(f"{number}", range(20 + 20 * number, 40 + 20 * number))
    config = make_config(tmp_path / "index", corpus=folder.section, code={"dtype": "float32"}, compute=ONE)
    build(config)
    ids = ids_file(tmp_path, "s31", "s33")
    code, out, _ = run(capsys, "remove", config.index, "--ids", ids, f"update.curvature={method}", "--json")
    changes: Any = result_of(out)["changes"]
    assert code == 0 and changes["curvature"] == [{"refit": "fitted", "merge": "merged"}[method]]
    fresh = config.model_copy(update={"index": str(tmp_path / "fresh")})
    build(fresh)
    store, other = Store(config.index), Store(fresh.index)
    generation = store.latest()
    run(capsys, "remove", fresh.index, "--ids", ids)
    expected = scores_of(fresh, QUERIES)
    actual = scores_of(config, QUERIES)
    assert actual.keys() == expected.keys() and len(actual) == 238
    pairs = np.array([[actual[name][0], expected[name][0]] for name in actual])
    assert np.corrcoef(pairs.T)[0, 1] >= {"refit": 0.9999, "merge": 0.99}[method]
    for number, layer in store.curvatures.layers(generation, generation.newest):
        expected_layer = other.curvatures.layer(other.latest(), other.latest().newest, number)
        assert layer.rows == expected_layer.rows == 238
        assert layer.trace == pytest.approx(expected_layer.trace, rel=1e-4)


def test_the_next_change_completes_a_removal_that_crashed(config: Config, folder: Folder) -> None:
    """The removal has only recorded its examples; a receipt of an earlier run has one of them, too."""
    build(config)
    store = Store(config.index)
    folder.put("9", range(200, 210))
    plan = make_update_plan(config).build
    receipt = ShardIndexer(config, plan.spec).index(plan.shards[0])
    assert receipt.rows == 10
    noted = {"example_id": ["s25", "s50", "s205"], "content_hash": ["0" * 32] * 3}
    store.rows.note_removed(pa.table(noted))
    store.rows.note_removed(pa.table(noted))
    assert update(config).rows == 67
    assert not {"s25", "s50", "s205"} & codes_of(config).keys()
    assert store.latest().removals == 3 and ["s205", REMOVED] in json.loads(store.latest().skipped_json)


def test_keys_that_do_not_apply_to_the_command_are_refused(
    capsys: pytest.CaptureFixture[str], config: Config
) -> None:
    path = Path(config.index).parent / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    Path(config.index).mkdir()
    code, _, err = run(capsys, "remove", config.index, "--where", "row < 5", "corpus.uri=x")
    assert code == 2 and "corpus cannot be set here" in err
