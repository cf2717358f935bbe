"""Invariant: on a GPU everything is as on the CPU, and the loop of batches does not wait for the GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.gradients.memory_gauge import GpuGauge, memory_gauge
from lorif_core.gradients.token_budget import TokenBudget
from lorif_core.model.loading import prepare_model
from lorif_core.model.transfer import HostCopy, to_device
from lorif_core.spec import CodeSpec, ProjectionSpec
from tests.models import FAMILIES, batch_of, llama, random_examples, tracked

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"),
]
BATCH = batch_of(random_examples(5, seed=2))


def extractor(make: Callable[[], Any], device: str, code: CodeSpec, kind: str = "random") -> Extractor:
    loaded = prepare_model(make().to(device))
    factor = 2 if kind == "random" else 1
    return Extractor(loaded, tracked(loaded, 2), ProjectionSpec(kind, factor), code)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["random", "folded"])
def test_extraction_equals_that_of_the_cpu(family: str, kind: str) -> None:
    for code in (CodeSpec("rank", 1, "float32"), CodeSpec("dense", 1, "float32")):
        gpu, cpu = (extractor(FAMILIES[family], device, code, kind) for device in ("cuda", "cpu"))
        gpu.check()
        (losses, layers), (expected_losses, expected_layers) = gpu.gradients(BATCH), cpu.gradients(BATCH)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
        for layer, expected in zip(layers, expected_layers, strict=True):
            assert (layer - expected).norm() <= 1e-3 * expected.norm()


def test_calibration_equals_that_of_the_cpu() -> None:
    sums = []
    for device in ("cuda", "cpu"):
        loaded = prepare_model(llama().to(device))
        calibrator = Calibrator(loaded, tracked(loaded, 2), ProjectionSpec("random", 2))
        calibrator.add(BATCH)
        sums.append(calibrator.covariances.sums)
    for key, matrix in sums[0].items():
        torch.testing.assert_close(
            matrix.cpu(), sums[1][key], rtol=1e-3, atol=1e-6 * float(sums[1][key].abs().max())
        )


def test_a_batch_does_not_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 needs no eigensolver of the library, which waits for its own errors."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    subject = extractor(llama, "cuda", CodeSpec("rank", 1, "float16"))
    expected = subject.extract(BATCH)
    torch.cuda.set_sync_debug_mode("error")
    try:
        started = subject.start(BATCH)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_array_equal(started.result().codes, expected.codes)


def test_transfers_arrive() -> None:
    numbers = torch.arange(2**20)
    there = to_device(numbers, torch.device("cuda"))
    copy = HostCopy(there * 2)
    there.zero_()
    torch.testing.assert_close(copy.wait(), numbers * 2)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    """The step takes a hundredth of the GPU for each example, so about 90 fit."""
    total = torch.cuda.mem_get_info()[1]
    done: list[int] = []

    def step(indices: list[int]) -> None:
        torch.empty(len(indices) * total // 100, dtype=torch.uint8, device="cuda")
        done.extend(indices)

    budget = TokenBudget(16 * 256, 16)
    budget.run([16] * 300, step)
    assert sorted(done) == list(range(300)) and budget.tokens in (16 * 64, 16 * 32)


def test_auto_stops_before_memory_runs_out() -> None:
    assert isinstance(memory_gauge([torch.device("cuda:0")]), GpuGauge)
    total = torch.cuda.mem_get_info()[1]
    sizes: list[int] = []

    def step(indices: list[int]) -> None:
        sizes.append(len(indices))
        torch.empty(len(indices) * total // 100, dtype=torch.uint8, device="cuda:0")

    TokenBudget("auto", 16, [torch.device("cuda:0")]).run([16] * 300, step)
    assert max(sizes) in (32, 64) and sum(sizes) == 300
