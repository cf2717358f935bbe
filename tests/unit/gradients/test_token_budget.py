"""Invariant: memory decides how many examples a batch has, never which rows are stored or what they contain."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorif_core.config_file import parse_config
from lorif_core.errors import MemoryExhaustedError
from lorif_core.gradients import token_budget
from lorif_core.gradients.memory_gauge import HostGauge, memory_gauge
from lorif_core.gradients.token_budget import TokenBudget
from lorif_core.lifecycle.calibrate import SampledShard, ShardCalibrator
from lorif_core.lifecycle.index_shard import ShardIndexer
from lorif_core.lifecycle.plan import make_plan
from lorif_core.model.loading import LoadedModel

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


class Memory:
    """A device on which batches of more than `capacity` tokens fail, and a step that records those that do not."""

    def __init__(self, capacity: int, lengths: list[int], error: Exception = ERRORS[0]) -> None:
        self.capacity, self.lengths, self.error = capacity, lengths, error
        self.sizes: list[int] = []
        self.done: list[int] = []
        self.failed = 0

    most_tokens = 1024

    def step(self, indices: list[int]) -> None:
        self.size = len(indices) * max(self.lengths[i] for i in indices)
        if self.size > self.capacity:
            self.failed += 1
            raise self.error
        self.sizes.append(self.size)
        self.done += indices

    def start(self) -> None:
        pass

    def headroom(self) -> float:
        return self.capacity / self.size


def auto(memory: Memory, monkeypatch: pytest.MonkeyPatch, longest: int = 16) -> TokenBudget:
    monkeypatch.setattr(token_budget, "memory_gauge", lambda devices: memory)
    return TokenBudget("auto", longest)


@pytest.mark.parametrize(("capacity", "largest"), [(10**9, 1024), (300, 256), (16, 16), (17, 16)])
def test_auto_finds_the_largest_batch_without_a_failure(
    capacity: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(capacity, [16] * 500)
    budget = auto(memory, monkeypatch)
    budget.run(memory.lengths, memory.step)
    assert sorted(memory.done) == list(range(500)) and memory.failed == 0
    assert max(memory.sizes) == largest == budget.tokens
    assert memory.sizes[:2] == [16, min(32, largest)], "the first batches show what a larger one needs"
    found = len(memory.sizes)
    budget.run(memory.lengths, memory.step)
    assert set(memory.sizes[found:-1]) == {largest}, "it is found once"


def test_small_batches_do_not_say_how_large_one_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(10**9, [2])
    budget = auto(memory, monkeypatch)
    for _ in range(20):
        budget.run([2], memory.step)
    assert budget.tokens == 16


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("tokens", [256, "auto"])
def test_a_lack_of_memory_halves_batches_for_good(
    tokens: int, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(10**9, [16, 8, 4, 2] * 100, error)
    budget = auto(memory, monkeypatch) if tokens == "auto" else TokenBudget(tokens, 16)
    budget.run(memory.lengths, memory.step)
    before = budget.tokens
    memory.capacity, memory.done, memory.sizes = before // 3, [], []  # another process takes most of it
    with caplog.at_level(logging.WARNING):
        budget.run(memory.lengths, memory.step)
    assert sorted(memory.done) == list(range(400)), "every example runs once"
    assert budget.tokens == before // 4 and memory.failed == 2 == len(caplog.records)
    memory.capacity = 10**9
    budget.run(memory.lengths, memory.step)
    assert budget.tokens == before // 4 and max(memory.sizes) == before // 4


def test_one_example_that_does_not_fit_is_an_error() -> None:
    memory = Memory(10, [4, 16, 4])
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        TokenBudget(64, 16).run(memory.lengths, memory.step)
    assert not memory.done


@pytest.mark.parametrize("error", [ValueError("wrong"), MemoryExhaustedError("another process ran out of memory")])
def test_other_errors_pass_through(error: Exception) -> None:
    memory = Memory(10, [4, 16, 4], error)
    with pytest.raises(type(error)):
        TokenBudget(64, 16).run(memory.lengths, memory.step)
    assert memory.failed == 1


def test_a_step_that_leaves_traces_begins_again() -> None:
    memory = Memory(100, [16] * 8 + [4] * 4)
    memory.capacity = 64
    restarts: list[int] = []

    def restart() -> None:
        restarts.append(len(memory.done))
        memory.done = []

    def fail_late(indices: list[int]) -> None:
        if len(memory.done) == 4 and not restarts:
            raise MemoryError
        memory.step(indices)

    TokenBudget(64, 16).run(memory.lengths, fail_late, restart=restart)
    assert restarts == [4] and sorted(memory.done) == list(range(12))


def test_the_gauge_of_the_host_sees_what_a_batch_takes() -> None:
    gauge = memory_gauge([torch.device("cpu")])
    assert isinstance(gauge, HostGauge)
    gauge.start()
    torch.ones(64 * 2**20 // 4).sum()
    little = gauge.headroom()
    gauge.start()
    torch.ones(256 * 2**20 // 4).sum()
    much = gauge.headroom()
    assert 2 < little / much < 8, "the peak counts, though the memory is free again"


def config_for(model_folder: Path, corpus_file: Path, tmp_path: Path, tokens: int | str, **code: object) -> object:
    return parse_config(
        {
            "index": str(tmp_path / "index"),
            "model": {"path": str(model_folder)},
            "corpus": {"uri": str(corpus_file), "max_length": 64},
            "projection": {"kind": "folded", "whiten": True},
            "code": code,
            "curvature": {"kind": "none"},
            "compute": {"tokens_per_batch": tokens},
        }
    )


def failing_above(tokens: int) -> Callable[..., torch.Tensor]:
    backward = LoadedModel.backward

    def limited(self: LoadedModel, ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        losses = backward(self, ids, *arguments)
        if ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return losses

    return limited


@pytest.mark.parametrize(
    "code", [{"kind": "rank", "rank": 1, "dtype": "float32"}, {"kind": "dense", "dtype": "float16"}], ids=str
)
def test_rows_and_covariances_do_not_depend_on_the_size_of_batches(
    code: dict[str, object], model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for tokens, limit in [(64, 10**9), ("auto", 10**9), (1024, 128)]:
        config = config_for(model_folder, corpus_file, tmp_path, tokens, **code)
        plan = make_plan(config)  # type: ignore[arg-type]
        monkeypatch.setattr(LoadedModel, "backward", failing_above(limit))
        indexer = ShardIndexer(config, plan.spec.with_whitening(None))  # type: ignore[arg-type]
        calibrator = ShardCalibrator(config, plan.spec, indexer.loaded)  # type: ignore[arg-type]
        covariances = calibrator.covariances([SampledShard(plan.shards[0], 30)])
        rows, _, _ = indexer.encode(list(indexer.read(plan.shards[0])))
        monkeypatch.undo()
        results.append((covariances, rows))
    (expected_covariances, expected), *others = results
    for covariances, rows in others:
        assert (covariances.tokens, covariances.examples) == (
            expected_covariances.tokens,
            expected_covariances.examples,
        )
        for key, matrix in covariances.sums.items():
            true = expected_covariances.sums[key]
            torch.testing.assert_close(matrix, true, rtol=1e-4, atol=1e-6 * float(true.abs().max()))
        assert [e.example_id for e in rows.examples] == [e.example_id for e in expected.examples]
        np.testing.assert_allclose(rows.losses, expected.losses, rtol=1e-5)
        np.testing.assert_allclose(rows.scales, expected.scales, rtol=1e-3)
        np.testing.assert_allclose(
            rows.codes.astype(np.float32), expected.codes.astype(np.float32), rtol=2e-2, atol=5e-3
        )
