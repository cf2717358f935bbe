"""Invariant: every token belongs to the example that it was made for, however a collator pads or packs."""

import numpy as np
import pytest
import torch

from lorif_core.recording.segments import Segments, find_segments

IDS = np.arange(1, 13).reshape(2, 6)


@pytest.mark.parametrize(
    ("inputs", "bounds"),
    [
        ({}, [(0, 0, 6), (1, 0, 6)]),
        ({"attention_mask": np.array([[1, 1, 1, 1, 0, 0], [1] * 6])}, [(0, 0, 4), (1, 0, 6)]),
        ({"attention_mask": np.array([[0, 0, 1, 1, 1, 1], [1] * 6])}, [(0, 2, 6), (1, 0, 6)]),
        ({"attention_mask": np.array([[1, 1, 2, 2, 2, 0], [1] * 6])}, [(0, 0, 2), (0, 2, 5), (1, 0, 6)]),
        ({"position_ids": np.array([[0, 1, 2, 0, 1, 2]] * 2)}, [(0, 0, 3), (0, 3, 6), (1, 0, 3), (1, 3, 6)]),
        ({"position_ids": np.array([[0, 1, 2, 3, 4, 5]])}, [(0, 0, 6), (1, 0, 6)]),
        ({"seq_idx": np.array([[0, 0, 1, 1, 1, 1], [0] * 6])}, [(0, 0, 2), (0, 2, 6), (1, 0, 6)]),
        ({"labels": np.array([[1, 2, 3, 4, -100, -100], [7, 8, 9, 10, 11, 12]])}, [(0, 0, 6), (1, 0, 6)]),
    ],
)  # fmt: skip
def test_examples_are_found(inputs: dict[str, np.ndarray], bounds: list[tuple[int, int, int]]) -> None:
    assert list(find_segments({"input_ids": IDS, **inputs}, pad_id=99).bounds) == bounds


def test_padding_without_a_mask_is_known_by_its_token_and_label() -> None:
    ids = np.array([[5, 6, 0, 7, 0, 0]])
    labels = np.array([[5, 6, -100, 7, -100, -100]])
    assert find_segments({"input_ids": ids, "labels": labels}, pad_id=0).bounds == [(0, 0, 4)]


def test_one_flat_row_is_split_at_the_edges_of_its_documents() -> None:
    inputs = {"input_ids": np.arange(7)[None], "cu_seq_lens_q": np.array([0, 3, 7])}
    assert find_segments(inputs).bounds == [(0, 0, 3), (0, 3, 7)]


def test_tokens_are_split_with_zeros_behind_short_examples() -> None:
    x = torch.arange(12.0).view(2, 6, 1)
    split = Segments((2, 6), [(0, 2, 4), (1, 1, 5)]).split(x)
    assert split[:, :, 0].tolist() == [[2, 3, 0, 0], [7, 8, 9, 10]]
    whole = Segments((2, 6), [(0, 0, 4), (1, 0, 6)])
    assert whole.split(x) is x and whole.longest == 6
