"""Invariants: a wave is committed once, however often the commit is repeated; a generation never changes."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import lance
import numpy as np
import pytest
import torch

from lorif_core.curvature.woodbury import LayerCurvature
from lorif_core.errors import UserError
from lorif_core.gradients.whitening import Covariances
from lorif_core.spec import IndexSpec, ProjectionSpec
from lorif_core.tables.generation import generation_of, now, ranges
from lorif_core.tables.store import Store
from tests.unit.tables.small_store import SPEC, commit, finished, generation, keep_only, rows, shard, shard_numbers


def test_a_wave_is_committed_once_by_any_committer(store: Store) -> None:
    since = store.rows.version()
    receipts = [finished(store, 0, (("s", "why"),))]
    first = store.rows.commit_wave(receipts, since)
    assert store.rows.commit_wave(receipts, since) == first
    other = Store(store.uri)  # a process that starts after the first one died
    assert other.rows.commit_wave(receipts, since) == first
    assert store.rows.counts() == (4, 12)
    assert other.rows.skipped({shard(0).file}) == [("s", "why")] and other.rows.skipped(set()) == []
    assert shard_numbers(other) == {0}


def test_two_overlapping_builds_duplicate_nothing(store: Store) -> None:
    """Each build has indexed, in its own waves, the shards that were missing when it started."""
    since = store.rows.version()
    mine, theirs = [finished(store, n) for n in (0, 1)], [finished(store, n) for n in (1, 2)]
    store.rows.commit_wave(mine, since)
    Store(store.uri).rows.commit_wave(theirs, since)
    assert store.rows.counts() == (12, 36)
    assert shard_numbers(store) == {0, 1, 2}


def test_a_removed_shard_can_be_added_again(store: Store) -> None:
    commit(store, 0, 1)
    keep_only(store, 1)
    assert shard_numbers(store) == {1}
    commit(store, 0)
    assert shard_numbers(store) == {0, 1} and store.rows.counts() == (8, 24)


def test_cleaning_old_versions_does_not_break_the_next_build(store: Store) -> None:
    commit(store, 0)
    commit(store, 1)
    store._tables.require("factors").cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    commit(store, 2)
    assert store.rows.counts() == (12, 36)


def test_codes_are_read_as_they_were_written(store: Store) -> None:
    written = rows(3)
    commit(store, 3)
    (block,) = store.rows.scan(store.rows.version(), 100)
    np.testing.assert_array_equal(block.codes.numpy(), written.codes.astype(np.float32))
    np.testing.assert_array_equal(block.scales.numpy(), written.scales)
    details = store.rows.details(store.rows.version(), ["it's 3/1", "no such id"])
    assert list(details) == ["it's 3/1"] and details["it's 3/1"]["tokens"] == 3


def test_writers_do_not_change_the_rows_of_a_generation(store: Store) -> None:
    commit(store, 0)
    first = store.publish(generation(store, 1))
    commit(store, 1)
    keep_only(store, 1)
    second = store.publish(generation(store, 2))
    ids = {
        g.generation: {i for b in store.rows.scan(g.factors_version, 9) for i in b.example_ids}
        for g in (first, second)
    }
    assert ids[1] == {f"it's 0/{i}" for i in range(4)} and ids[2] == {f"it's 1/{i}" for i in range(4)}
    assert [g.generation for g in Store(store.uri).generations()] == [1, 2]


def test_publishing_can_be_repeated_after_a_crash_between_tag_and_row(store: Store) -> None:
    commit(store, 0)
    store._tables.require("factors").tags.create("generation-1", 1)
    assert store.publish(generation(store, 1)).rows == 4
    assert store.latest().generation == 1


def test_curvature_is_read_as_it_was_written(store: Store) -> None:
    fitted = {
        index: (layer.name, LayerCurvature(
            torch.tensor([3.0, 1.0], dtype=torch.float64), torch.randn(layer.dim, 2), 5.0, 4, 0.5, 0.75))
        for index, layer in enumerate(SPEC.layers)
    }  # fmt: skip
    store.curvatures.write("old", fitted)
    store.curvatures.write("c", fitted)
    commit(store, 0)
    published = generation(store, 1)
    for index, layer in store.curvatures.layers(published, published.newest):
        expected = fitted[index][1]
        torch.testing.assert_close(layer.basis, expected.basis)
        torch.testing.assert_close(layer.sigma2, expected.sigma2)
        assert (layer.trace, layer.rows, layer.damping, layer.outside) == (5.0, 4, 0.5, 0.75)


def test_parts_are_read_with_their_fragments(store: Store) -> None:
    commit(store, 0)
    first = generation(store, 1).newest
    parts = [replace(first, fragments=ranges([5, 0, 1, 3, 4])), replace(first, rows=2, fragments=((7, 9),))]
    published = generation_of(
        parts, generation=1, created_at=now(), factors_version=2, curvature_version=1, coverage_json="{}",
        skipped_json="[]", timings_json="{}",
    )  # fmt: skip
    store.publish(published)
    (stored,) = Store(store.uri).generations()
    assert stored.parts == tuple(parts) and stored.rows == 6 and stored.newest == parts[1]
    assert parts[0].fragments == ((0, 1), (3, 5)) and parts[0].spec == SPEC.hash
    assert parts[0].select_fragments(range(10)) == [0, 1, 3, 4, 5] and first.select_fragments([2, 8]) == [2, 8]


def test_generations_of_another_format_are_refused(store: Store) -> None:
    """Every operation that opens the index refuses them, before anything is written."""
    store._tables.require("generations").drop_columns(["parts_json"])
    for use in (store.generations, store.latest, lambda: store.check_spec(SPEC), lambda: store.create(SPEC)):
        with pytest.raises(UserError, match="made by another version of lorif"):
            use()


def test_an_index_that_was_calibrated_on_a_number_of_examples_keeps_it_under_auto(tmp_path: Path) -> None:
    """An index of a release whose default was 512 opens and updates; so does one that was built under `auto`."""

    def spec(examples: int | Literal["auto"], whitening: str | None = None) -> IndexSpec:
        return replace(SPEC, projection=ProjectionSpec("whitened", 2, 0, examples, whitening))

    for number, examples in enumerate((512, "auto")):
        store = Store(str(tmp_path / str(number)))
        assert store.with_stored_whitening(spec("auto")) == spec("auto"), "a new index"
        sums = {
            (layer, side): torch.eye(size, dtype=torch.float64)
            for layer, of in enumerate(SPEC.layers)
            for side, size in (("in", of.d1), ("out", of.d2))
        }
        covariances = Covariances(sums, tokens=9, examples=3)
        whitened = spec(examples, store.whitenings.add(covariances, SPEC.layers, spec(examples)))
        store.create(whitened)
        found = store.with_stored_whitening(spec("auto"))
        assert found == whitened and found.hash == whitened.hash
        store.check_spec(found)
        continued = replace(spec("auto"), checkpoint="sha256:1")
        expected = replace(spec(examples), checkpoint="sha256:1")
        assert store.with_stored_whitening(continued) == expected, (
            "another checkpoint needs a whitening of its own"
        )
        store.check_spec(expected, same_checkpoint=False)
        with pytest.raises(UserError, match=rf"calibration_examples \({examples} there, 64 here\)"):
            store.check_spec(store.with_stored_whitening(spec(64)))


def test_another_spec_is_refused_with_the_keys_that_differ(store: Store) -> None:
    other = replace(SPEC, projection=ProjectionSpec(factor=2, seed=9), store_text=False)
    with pytest.raises(
        UserError, match=r"projection\.seed \(0 there, 9 here\); store_text \(True there, False here\)"
    ):
        store.create(other)


def test_a_missing_index_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run lorif build first"):
        Store(str(tmp_path / "none")).latest()


def test_a_writer_killed_before_its_commit_leaves_no_row(store: Store) -> None:
    """kill -9 after fragments are on disk and before the commit: readers and the next build do not see them."""
    code = (
        "from tests.unit.tables.small_store import *; import time\n"
        f"finished(Store({store.uri!r}), 0); print('written', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert store.rows.counts() == (0, 0) and shard_numbers(store) == set()
    assert any((Path(store.uri) / "factors.lance" / "data").iterdir()), "the test needs an orphan on disk"
    commit(store, 0)
    assert store.rows.counts() == (4, 12)


def test_a_concurrent_commit_of_the_same_shard_is_undone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault: during our commit, a suspended committer resumes and commits one of our shards."""
    since = store.rows.version()
    late, ours = finished(store, 0), [finished(store, 0), finished(store, 1)]
    real = lance.LanceDataset.commit
    calls: list[int] = []

    def interrupted(*arguments: object, **keywords: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            Store(store.uri).rows.commit_wave([late], since)
        return real(*arguments, **keywords)

    monkeypatch.setattr(lance.LanceDataset, "commit", interrupted)
    store.rows.commit_wave(ours, since)
    assert store.rows.counts()[0] == 8 and shard_numbers(store) == {0, 1}


def test_a_lost_response_does_not_duplicate_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault: the commit succeeds, its response is lost, and both the table and the caller repeat it."""
    since, wave = store.rows.version(), [finished(store, 0), finished(store, 1)]
    real = lance.LanceDataset.commit

    def lost(*arguments: object, **keywords: object) -> object:
        real(*arguments, **keywords)
        monkeypatch.setattr(lance.LanceDataset, "commit", real)
        raise OSError("connection reset by peer")

    monkeypatch.setattr(lance.LanceDataset, "commit", lost)
    committed = store.rows.commit_wave(wave, since)
    assert store.rows.commit_wave(wave, since) == committed == since + 1
    assert store.rows.counts()[0] == 8


def test_the_next_build_removes_duplicates_of_a_crashed_committer(store: Store) -> None:
    wave = [finished(store, 0), finished(store, 1)]
    store.rows.commit_wave(wave, store.rows.version())
    store.rows.commit_wave(wave[:1], store.rows.version())  # a wrong `since` hides the first commit
    assert store.rows.counts()[0] == 12
    keep_only(store, 0, 1)
    assert store.rows.counts()[0] == 8 and shard_numbers(store) == {0, 1}
