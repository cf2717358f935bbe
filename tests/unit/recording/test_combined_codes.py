"""Invariant: the row of an example decodes to the mean of its rows in the journal, as exactly as it can."""

import numpy as np
import pytest
import torch

from lorif_core.config_file import parse_config
from lorif_core.gradients.codes import CodeLayout, encode
from lorif_core.gradients.extract import to_stored
from lorif_core.recording.combined_codes import JournalRow, combined
from lorif_core.recording.settings import RecordingSettings
from lorif_core.spec import CodeSpec, LayerSpec

LAYERS = (LayerSpec("a", 12, 10, 12, 10), LayerSpec("b", 8, 8, 8, 8))
EXACT = 2e-3
CONFIG = {"model": {"path": "."}, "corpus": {"uri": "."}, "index": "index"}


def journal_rows(count: int, layout: CodeLayout, seed: int = 0) -> list[JournalRow]:
    """Codes of random gradients of two tokens."""
    rng = torch.Generator().manual_seed(seed)
    codes, scales = torch.zeros(count, layout.width), torch.zeros(count, layout.scales)
    for slot in layout.slots:
        A, E = (torch.randn(count, 2, size, generator=rng) for size in (slot.layer.d1, slot.layer.d2))
        encoded = encode(A, E, layout.code)
        codes[:, slot.start : slot.stop], scales[:, slot.scales] = encoded.codes, encoded.scales
    stored = to_stored(codes, layout)
    return [(1.0 + i, stored[i].numpy(), scales[i].numpy()) for i in range(count)]


def decoded(rows: list[JournalRow], layout: CodeLayout) -> torch.Tensor:
    """(rows, D of all layers)."""
    codes, scales = (torch.from_numpy(np.stack([row[part] for row in rows])) for part in (1, 2))
    return torch.cat([layout.decode(codes, scales, layer) for layer in range(len(LAYERS))], dim=1)


def error(groups: list[list[JournalRow]], journal: CodeLayout, stored: CodeLayout) -> float:
    """The largest relative error of the rows that come of the groups."""
    found = combined(groups, journal, stored, unbiased=False)
    rows = [(0.0, code, scale) for code, scale in zip(found.codes, found.scales, strict=True)]
    expected = torch.stack([decoded(group, journal).mean(dim=0) for group in groups])
    return float(((decoded(rows, stored) - expected).norm(dim=1) / expected.norm(dim=1)).max())


CODES = [CodeSpec("rank", 2, "float16"), CodeSpec("rank", 2, "int8"), CodeSpec("cut", 2, "sign")]


@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code.kind}-{code.dtype}")
def test_a_longer_code_keeps_the_terms_of_each_row(code: CodeSpec) -> None:
    journal, stored = CodeLayout(LAYERS, code), CodeLayout(LAYERS, CodeSpec(code.kind, 6, code.dtype))
    rows = journal_rows(6, journal)
    assert error([rows[:3], rows[3:5], rows[5:]], journal, stored) < EXACT


@pytest.mark.parametrize(("finer", "code"), [
    (CodeSpec("rank", 8, "float16"), CodeSpec("rank", 8, "float16")),
    (CodeSpec("dense", 1, "float16"), CodeSpec("dense", 1, "float16")),
], ids=["rank", "dense"])  # fmt: skip
def test_a_mean_that_fits_its_code_is_exact(finer: CodeSpec, code: CodeSpec) -> None:
    journal, stored = CodeLayout(LAYERS, finer), CodeLayout(LAYERS, code)
    rows = journal_rows(6, journal)
    assert error([rows[:3], rows[3:5], rows[5:]], journal, stored) < EXACT


def test_a_mean_of_whole_gradients_is_nearer_than_one_of_stored_codes() -> None:
    settings = RecordingSettings(parse_config({**CONFIG, "code": {"rank": 2}}), sightings="mean")
    stored, finer, exact = (
        CodeLayout(LAYERS, code)
        for code in (settings.code(LAYERS), settings.journal_code(LAYERS), CodeSpec("dense", 1, "float32"))
    )
    coarse_rows, fine_rows, exact_rows = (journal_rows(60, layout) for layout in (stored, finer, exact))
    means = decoded(exact_rows, exact).view(20, 3, -1).mean(dim=1)

    def cosine(rows: list[JournalRow], journal: CodeLayout) -> float:
        groups = [rows[start : start + 3] for start in range(0, 60, 3)]
        found = combined(groups, journal, stored, unbiased=False)
        codes = [(0.0, code, scale) for code, scale in zip(found.codes, found.scales, strict=True)]
        return float(torch.nn.functional.cosine_similarity(decoded(codes, stored), means).mean())

    assert cosine(fine_rows, finer) > cosine(coarse_rows, stored) + 0.02


def test_a_mean_that_is_too_large_becomes_the_last_row(caplog: pytest.LogCaptureFixture) -> None:
    settings = RecordingSettings(parse_config(CONFIG), sightings="mean")
    assert settings.affordable(LAYERS) is settings
    large = [LayerSpec(str(number), 1024, 1024, 1024, 1024) for number in range(8)]
    assert settings.affordable(large).sightings == "last" and "their last row" in caplog.text


def test_a_single_row_stays_bit_for_bit() -> None:
    layout = CodeLayout(LAYERS, CodeSpec("cut", 2, "sign"))
    rows = journal_rows(3, layout)
    found = combined([[row] for row in rows], layout, layout, unbiased=True)
    np.testing.assert_array_equal(found.codes, np.stack([row[1] for row in rows]))
    np.testing.assert_array_equal(found.scales, np.stack([row[2] for row in rows]))
    np.testing.assert_allclose(found.losses, [1.0, 2.0, 3.0])
