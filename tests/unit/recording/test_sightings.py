"""Invariant: rows that a restore has undone do not count, and the mean of rows is that of what they decode to."""

import numpy as np
import pytest
import torch

from lorif_core.gradients.codes import CodeLayout, encode
from lorif_core.gradients.extract import to_stored
from lorif_core.recording.journal import Recording
from lorif_core.recording.sightings import grouped, one_of_each
from lorif_core.spec import CodeSpec, LayerSpec

LAYERS = (LayerSpec("a", 12, 10, 12, 10), LayerSpec("b", 8, 8, 8, 8))


@pytest.mark.parametrize("code", [CodeSpec("rank", 8, "float32"), CodeSpec("dense", 1, "float16")])
def test_the_mean_of_rows_decodes_to_the_mean(code: CodeSpec) -> None:
    layout, rng = CodeLayout(LAYERS, code), torch.Generator().manual_seed(0)
    codes, scales = torch.zeros(3, layout.width), torch.zeros(3, layout.scales)
    for slot in layout.slots:
        A, E = (torch.randn(3, 2, size, generator=rng) for size in (slot.layer.d1, slot.layer.d2))
        encoded = encode(A, E, code)
        codes[:, slot.start : slot.stop], scales[:, slot.scales] = encoded.codes, encoded.scales
    stored = to_stored(codes, layout)
    rows = [(1.0 + i, stored[i].numpy(), scales[i].numpy()) for i in range(3)]
    found = one_of_each([rows, rows[:1]], layout, unbiased=False)
    np.testing.assert_allclose(found.losses, [2.0, 1.0])
    np.testing.assert_array_equal(found.codes[1], stored[0])
    for layer in range(len(LAYERS)):
        expected = layout.decode(stored, scales, layer).mean(dim=0)
        mean = layout.decode(torch.from_numpy(found.codes), torch.from_numpy(found.scales), layer)[0]
        torch.testing.assert_close(mean, expected, rtol=2e-2, atol=2e-3 * float(expected.abs().max()))


def test_rows_above_the_step_of_a_later_attempt_are_undone() -> None:
    recording = Recording("run", {}, [], None, "last").with_attempt(0).with_attempt(5).with_attempt(3)
    steps = np.arange(1, 9)
    assert steps[recording.are_valid(0, steps)].tolist() == [1, 2, 3]
    assert steps[recording.are_valid(1, steps)].tolist() == [1, 2, 3], "it made none below 6"
    assert steps[recording.are_valid(2, steps)].tolist() == list(range(1, 9))


def test_groups_stay_within_the_limit_unless_one_count_is_above_it() -> None:
    assert list(grouped([3, 3, 9, 1, 1], 6)) == [range(2), range(2, 3), range(3, 5)]
    assert list(grouped([], 6)) == []
