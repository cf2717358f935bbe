"""Invariant: batches contain each example once, and rows times longest length never exceeds the token budget.

If this breaks, examples are missing from the index or a worker runs out of memory.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.corpus.batches import collate, padding_waste, token_budget_batches
from tests.models import make_example


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(50, 200))
def test_batches_contain_each_index_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batch and len(batch) * max(lengths[i] for i in batch) <= budget for batch in batches)
    assert batches == token_budget_batches(lengths, budget)
    assert 0 <= padding_waste(lengths, batches) < 1


def test_batches_are_filled_and_sorted_by_length() -> None:
    lengths = [3, 8, 3, 8, 2]
    batches = token_budget_batches(lengths, 16)
    assert batches == [[1, 3], [0, 2, 4]]
    assert padding_waste(lengths, batches) == pytest.approx(1 / 25)


def test_a_sequence_above_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="9 tokens does not fit a budget of 8"):
        token_budget_batches([3, 9], 8)


def test_padding_is_on_the_right_and_unscored() -> None:
    examples = [make_example([5, 6, 7]), make_example([1]), make_example([8, 9], [-100, 9])]
    batch = collate(examples, [2, 0])
    assert batch.indices == [2, 0]
    np.testing.assert_array_equal(batch.input_ids, [[8, 9, 0], [5, 6, 7]])
    np.testing.assert_array_equal(batch.labels, [[-100, 9, -100], [5, 6, 7]])
    assert batch.input_ids.dtype == batch.labels.dtype == np.int64


def test_empty_inputs() -> None:
    assert token_budget_batches([], 8) == []
    assert padding_waste([], []) == 0.0
    assert collate([], []).input_ids.shape == (0, 0)
