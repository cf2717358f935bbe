"""Invariants: a wave is committed once however often it is tried; a generation never changes."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pytest
import torch

from lorif_core.curvature import LayerCurvature
from lorif_core.errors import UserError
from lorif_core.generation import Generation, Part, generation_of, ranges
from lorif_core.receipts import Receipt
from lorif_core.schema import ShardRows
from lorif_core.spec import CodeSpec, IndexSpec, LayerSpec, ProjectionSpec, ShardRef, TokenSpec, parse_shard_key
from lorif_core.store import Store, now
from tests.models import make_example

SPEC = IndexSpec(
    checkpoint="sha256:0",
    model_dtype="float32",
    layers=(LayerSpec("a", 8, 8, 4, 4), LayerSpec("b", 8, 4, 4, 2)),
    projection=ProjectionSpec(factor=2),
    code=CodeSpec("rank", 1, "float16"),
    tokenisation=TokenSpec("none", None, None, None, "ids", None, None, 16, False),
)
WIDTH = 4 + 4 + 4 + 2


def shard(number: int) -> ShardRef:
    return ShardRef("/corpus/x.jsonl", "x.jsonl", "tag", 100, number * 4, 4, None)


def rows(number: int) -> ShardRows:
    rng = np.random.default_rng(number)
    examples = [make_example([1, 2, 3], name=f"it's {number}/{i}") for i in range(4)]
    return ShardRows(
        examples,
        np.ones(4, np.float32),
        rng.standard_normal((4, WIDTH)).astype(np.float16),
        rng.random((4, 2), np.float32),
    )


def generation(store: Store, number: int, curvature: str = "c") -> Generation:
    version = store.factors_version()
    part = Part(
        SPEC.to_json(), SPEC.checkpoint, "/model", None, curvature, "woodbury", "{}", False, *store.counts(version)
    )
    return generation_of(
        [part], generation=number, created_at=now(), factors_version=version,
        curvature_version=store.curvature_version(), coverage_json="{}", skipped_json="[]", timings_json="{}",
    )  # fmt: skip


def finished(store: Store, number: int, skipped: tuple[tuple[str, str], ...] = ()) -> Receipt:
    """A shard written by a worker and not committed."""
    fragments = store.write_rows(iter([rows(number)]), shard(number), SPEC)
    return Receipt(shard(number).key, tuple(fragments), 4, 12, 12, skipped, 0.0)


def commit(store: Store, *numbers: int) -> None:
    store.commit_wave([finished(store, number) for number in numbers], store.factors_version())


def keep_only(store: Store, *numbers: int) -> None:
    store.settle({(SPEC.hash, shard(number).key) for number in numbers})


def held(store: Store) -> set[int]:
    """Numbers of the shards in the newest version."""
    return {parse_shard_key(key)[1] // 4 for _, key in store.inventory().keys}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "index"))
    made.create(SPEC)
    return made


def test_a_wave_is_committed_once_by_any_committer(store: Store) -> None:
    since = store.factors_version()
    receipts = [finished(store, 0, (("s", "why"),))]
    first = store.commit_wave(receipts, since)
    assert store.commit_wave(receipts, since) == first
    other = Store(store.uri)  # a process that starts after the first one died
    assert other.commit_wave(receipts, since) == first
    assert store.counts() == (4, 12)
    assert other.skipped({shard(0).file}) == [("s", "why")] and other.skipped(set()) == []
    assert held(other) == {0}


def test_two_builds_that_overlap_double_nothing(store: Store) -> None:
    """Each has indexed the shards that were missing when it began, in waves of its own."""
    since = store.factors_version()
    mine, theirs = [finished(store, n) for n in (0, 1)], [finished(store, n) for n in (1, 2)]
    store.commit_wave(mine, since)
    Store(store.uri).commit_wave(theirs, since)
    assert store.counts() == (12, 36)
    assert held(store) == {0, 1, 2}


def test_a_shard_that_leaves_and_returns_is_there_again(store: Store) -> None:
    commit(store, 0, 1)
    keep_only(store, 1)
    assert held(store) == {1}
    commit(store, 0)
    assert held(store) == {0, 1} and store.counts() == (8, 24)


def test_cleaning_old_versions_does_not_break_the_next_build(store: Store) -> None:
    commit(store, 0)
    commit(store, 1)
    store._tables.require("factors").cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    commit(store, 2)
    assert store.counts() == (12, 36)


def test_codes_come_back_as_they_were_written(store: Store) -> None:
    written = rows(3)
    commit(store, 3)
    (block,) = store.scan(store.factors_version(), 100)
    np.testing.assert_array_equal(block.codes.numpy(), written.codes.astype(np.float32))
    np.testing.assert_array_equal(block.scales.numpy(), written.scales)
    details = store.details(store.factors_version(), ["it's 3/1", "no such id"])
    assert list(details) == ["it's 3/1"] and details["it's 3/1"]["tokens"] == 3


def test_a_generation_keeps_its_rows_whatever_writers_do(store: Store) -> None:
    commit(store, 0)
    first = store.publish(generation(store, 1))
    commit(store, 1)
    keep_only(store, 1)
    second = store.publish(generation(store, 2))
    seen = {
        g.generation: {i for b in store.scan(g.factors_version, 9) for i in b.example_ids} for g in (first, second)
    }
    assert seen[1] == {f"it's 0/{i}" for i in range(4)} and seen[2] == {f"it's 1/{i}" for i in range(4)}
    assert [g.generation for g in Store(store.uri).generations()] == [1, 2]


def test_publishing_again_after_a_death_between_tag_and_row(store: Store) -> None:
    commit(store, 0)
    store._tables.require("factors").tags.create("generation-1", 1)
    assert store.publish(generation(store, 1)).rows == 4
    assert store.latest().generation == 1


def test_curvature_comes_back(store: Store) -> None:
    fitted = {
        index: (layer.name, LayerCurvature(
            torch.tensor([3.0, 1.0], dtype=torch.float64), torch.randn(layer.dim, 2), 5.0, 4, 0.5, 0.75))
        for index, layer in enumerate(SPEC.layers)
    }  # fmt: skip
    store.write_curvature("old", fitted)
    store.write_curvature("c", fitted)
    commit(store, 0)
    published = generation(store, 1)
    for index, found in store.curvature_layers(published, published.newest):
        expected = fitted[index][1]
        torch.testing.assert_close(found.basis, expected.basis)
        torch.testing.assert_close(found.sigma2, expected.sigma2)
        assert (found.trace, found.rows, found.damping, found.outside) == (5.0, 4, 0.5, 0.75)


def test_parts_come_back_and_know_their_fragments(store: Store) -> None:
    commit(store, 0)
    first = generation(store, 1).newest
    parts = [replace(first, fragments=ranges([5, 0, 1, 3, 4])), replace(first, rows=2, fragments=((7, 9),))]
    made = generation_of(
        parts, generation=1, created_at=now(), factors_version=2, curvature_version=1, coverage_json="{}",
        skipped_json="[]", timings_json="{}",
    )  # fmt: skip
    store.publish(made)
    (found,) = Store(store.uri).generations()
    assert found.parts == tuple(parts) and found.rows == 6 and found.newest == parts[1]
    assert parts[0].fragments == ((0, 1), (3, 5)) and parts[0].spec == SPEC.hash
    assert parts[0].chosen(range(10)) == [0, 1, 3, 4, 5] and first.chosen([2, 8]) == [2, 8]


def test_generations_of_another_format_are_refused_in_one_sentence(store: Store) -> None:
    """Before anything is written, by whoever opens the index."""
    store._tables.require("generations").drop_columns(["parts_json"])
    for use in (store.generations, store.latest, lambda: store.check_spec(SPEC), lambda: store.create(SPEC)):
        with pytest.raises(UserError, match="made by another version of lorif"):
            use()


def test_another_spec_is_refused_by_the_keys_that_differ(store: Store) -> None:
    other = replace(SPEC, projection=ProjectionSpec(factor=2, seed=9), store_text=False)
    with pytest.raises(
        UserError, match=r"projection\.seed \(0 there, 9 here\); store_text \(True there, False here\)"
    ):
        store.create(other)


def test_an_index_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run lorif build first"):
        Store(str(tmp_path / "none")).latest()


def test_a_writer_killed_before_its_commit_leaves_no_row(store: Store) -> None:
    """kill -9 after fragments are on disk and before the commit: readers and the next build see nothing of it."""
    code = (
        "from tests.unit.test_store import *; import time\n"
        f"finished(Store({store.uri!r}), 0); print('written', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert store.counts() == (0, 0) and held(store) == set()
    assert any((Path(store.uri) / "factors.lance" / "data").iterdir()), "the orphan is what this test is about"
    commit(store, 0)
    assert store.counts() == (4, 12)


def test_a_commit_that_slips_in_between_is_undone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault: while we commit, a committer that was stopped for long wakes up and commits one of our shards."""
    since = store.factors_version()
    late, ours = finished(store, 0), [finished(store, 0), finished(store, 1)]
    real = lance.LanceDataset.commit
    calls: list[int] = []

    def interrupted(*arguments: object, **keywords: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            Store(store.uri).commit_wave([late], since)
        return real(*arguments, **keywords)

    monkeypatch.setattr(lance.LanceDataset, "commit", interrupted)
    store.commit_wave(ours, since)
    assert store.counts()[0] == 8 and held(store) == {0, 1}


def test_an_answer_that_was_lost_does_not_double(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault: the commit succeeds, its answer is lost, and it is tried again, by the table and by the caller."""
    since, wave = store.factors_version(), [finished(store, 0), finished(store, 1)]
    real = lance.LanceDataset.commit

    def lost(*arguments: object, **keywords: object) -> object:
        real(*arguments, **keywords)
        monkeypatch.setattr(lance.LanceDataset, "commit", real)
        raise OSError("connection reset by peer")

    monkeypatch.setattr(lance.LanceDataset, "commit", lost)
    committed = store.commit_wave(wave, since)
    assert store.commit_wave(wave, since) == committed == since + 1
    assert store.counts()[0] == 8


def test_what_a_committer_doubled_before_it_died_is_taken_out_by_the_next_build(store: Store) -> None:
    wave = [finished(store, 0), finished(store, 1)]
    store.commit_wave(wave, store.factors_version())
    store.commit_wave(wave[:1], store.factors_version())  # it did not look
    assert store.counts()[0] == 12
    keep_only(store, 0, 1)
    assert store.counts()[0] == 8 and held(store) == {0, 1}
