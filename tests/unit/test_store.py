"""Invariants: a wave is committed once however often it is tried; a generation never changes."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorif_core.curvature import LayerCurvature
from lorif_core.errors import UserError
from lorif_core.schema import ShardRows
from lorif_core.spec import CodeSpec, IndexSpec, LayerSpec, ProjectionSpec, ShardRef, TokenSpec
from lorif_core.store import Generation, Store, now
from tests.models import make_example

SPEC = IndexSpec(
    checkpoint="sha256:0",
    model_dtype="float32",
    layers=(LayerSpec("a", 8, 8, 4, 4), LayerSpec("b", 8, 4, 4, 2)),
    projection=ProjectionSpec(factor=2),
    code=CodeSpec("rank", 1, "float16"),
    tokenisation=TokenSpec("none", None, None, None, "ids", None, 16, False),
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
    return Generation(
        number, now(), version, store.curvature_version(), curvature, "woodbury", SPEC.hash, SPEC.to_json(),
        SPEC.checkpoint, "/model", None, *store.counts(version), "{}", "[]", "{}",
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "index"))
    made.create(SPEC)
    return made


def test_a_wave_is_committed_once_by_any_committer(store: Store) -> None:
    fragments = store.write_rows(rows(0), shard(0), SPEC)
    first = store.commit_wave("wave-0", fragments, [("s", "why")])
    assert store.commit_wave("wave-0", fragments) == first
    other = Store(store.uri)  # a process that starts after the first one died
    assert other.commit_wave("wave-0", fragments) == first
    assert store.counts() == (4, 12)
    assert other.skipped() == [("s", "why")]
    assert other.committed_shards() == {shard(0).key}


def test_codes_come_back_as_they_were_written(store: Store) -> None:
    written = rows(3)
    store.commit_wave("w", store.write_rows(written, shard(3), SPEC))
    (block,) = store.scan(store.factors_version(), 100)
    np.testing.assert_array_equal(block.codes.numpy(), written.codes.astype(np.float32))
    np.testing.assert_array_equal(block.scales.numpy(), written.scales)
    details = store.details(store.factors_version(), ["it's 3/1", "no such id"])
    assert list(details) == ["it's 3/1"] and details["it's 3/1"]["tokens"] == 3


def test_a_generation_keeps_its_rows_whatever_writers_do(store: Store) -> None:
    store.commit_wave("w0", store.write_rows(rows(0), shard(0), SPEC))
    first = store.publish(generation(store, 1))
    store.commit_wave("w1", store.write_rows(rows(1), shard(1), SPEC))
    assert store.keep_only({shard(1).key}) == 1
    second = store.publish(generation(store, 2))
    seen = {
        g.generation: {i for b in store.scan(g.factors_version, 9) for i in b.example_ids} for g in (first, second)
    }
    assert seen[1] == {f"it's 0/{i}" for i in range(4)} and seen[2] == {f"it's 1/{i}" for i in range(4)}
    assert [g.generation for g in Store(store.uri).generations()] == [1, 2]


def test_publishing_again_after_a_death_between_tag_and_row(store: Store) -> None:
    store.commit_wave("w0", store.write_rows(rows(0), shard(0), SPEC))
    store._require("factors").tags.create("generation-1", 1)
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
    store.commit_wave("w0", store.write_rows(rows(0), shard(0), SPEC))
    for index, found in store.curvature_layers(generation(store, 1)):
        expected = fitted[index][1]
        torch.testing.assert_close(found.basis, expected.basis)
        torch.testing.assert_close(found.sigma2, expected.sigma2)
        assert (found.trace, found.rows, found.damping, found.outside) == (5.0, 4, 0.5, 0.75)


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
        f"Store({store.uri!r}).write_rows(rows(0), shard(0), SPEC); print('written', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert store.counts() == (0, 0) and store.committed_shards() == set()
    assert any((Path(store.uri) / "factors.lance" / "data").iterdir()), "the orphan is what this test is about"
    store.commit_wave("w0", store.write_rows(rows(0), shard(0), SPEC))
    assert store.counts() == (4, 12)
