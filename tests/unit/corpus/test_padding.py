"""Invariant: padding of given tokens never reaches the model: it is cut off by its mask, or the row is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.config import CorpusConfig
from lorif_core.corpus.tokenise import Example, make_examples
from lorif_core.errors import UserError
from lorif_core.search.queries import as_query, query_example
from tests import tokenizer_kinds as kinds
from tests.tokenizer_kinds import made

PAD, BOS, EOS = 3, 1, 2
PADS = made(kinds.gemma)
PADS_WITH_EOS = made(kinds.gpt2)  # has no padding token


def single_example(record: dict[str, Any], tokenizer: Any = None, **corpus: Any) -> Example:
    config = CorpusConfig(uri="x", tokens="t", **{"max_length": 512, **corpus})
    (example,) = make_examples(7, record, "f", tokenizer, config, 1000)
    return example


@given(st.integers(0, 4), st.lists(st.integers(4, 99), min_size=1, max_size=5), st.integers(0, 4))
def test_a_mask_cuts_padding_off_at_both_ends(left: int, tokens: list[int], right: int) -> None:
    ids = [PAD] * left + tokens + [PAD] * right
    mask = [0] * left + [1] * len(tokens) + [0] * right
    labels = [-100] * (left + 1) + tokens[1:] + [-100] * right
    example = single_example({"t": ids, "m": mask}, PADS, mask="m")
    assert example.input_ids.tolist() == example.labels.tolist() == tokens
    assert example.text == PADS.decode(tokens)
    example = single_example({"t": ids, "m": mask, "l": labels}, mask="m", labels="l")
    assert (example.input_ids.tolist(), example.labels.tolist()) == (tokens, [-100, *tokens[1:]])
    query = as_query({"tokens": ids, "labels": labels, "attention_mask": mask}, 0)
    if example.scored:
        queried = query_example(query, PADS, 1000, 512)
        assert (queried.input_ids.tolist(), queried.labels.tolist()) == (tokens, [-100, *tokens[1:]])


def test_a_row_of_padding_only_has_nothing_to_score() -> None:
    assert single_example({"t": [PAD, PAD], "m": [0, 0]}, PADS, mask="m").scored == 0


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ([1, 1], "3 tokens and a mask of 2"),
        ([1, 2, 1], "only 0 and 1"),
        ([1, 0, 1], "masks a token between others"),
        ([1, None, 1], "the mask of row 7 of f must be a list of integers"),
        (None, "the mask of row 7 of f is null"),
    ],
)
def test_a_mask_that_marks_no_padding_is_refused(mask: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        single_example({"t": [5, 6, 7], "m": mask}, mask="m")


def test_the_usual_mask_may_only_be_ignored_if_it_masks_nothing() -> None:
    with pytest.raises(UserError, match=r"row 7 of f is padded.*set corpus.mask to attention_mask"):
        single_example({"t": [PAD, 5, 6], "attention_mask": [0, 1, 1]})
    assert single_example({"t": [EOS, EOS, 6], "attention_mask": [1, 1, 1]}, PADS_WITH_EOS).scored == 2
    for stray in (None, [], "text", 0):
        assert single_example({"t": [4, 5, 6], "attention_mask": stray}).scored == 2


@pytest.mark.parametrize(
    ("tokenizer", "tokens", "labels", "is_padded"),
    [
        (PADS, [PAD, PAD, 5, 6], None, True),
        (PADS, [PAD, PAD, 5, 6], [-100, -100, 5, 6], True),
        (PADS, [5, 6, PAD, PAD], None, True),
        (PADS, [5, 6, PAD, PAD], [5, 6, -100, -100], False),  # later tokens change nothing
        (PADS, [PAD, 5, 6, PAD], None, False),  # some models put such a token between documents
        (PADS, [EOS, EOS, 5, 6, EOS, EOS], None, False),
        (PADS_WITH_EOS, [EOS, EOS, 5, 6], None, True),
        (PADS_WITH_EOS, [EOS, 5, 6, EOS], None, False),
        (None, [PAD, PAD, 5], None, False),
    ],
)
def test_evident_padding_is_refused_without_a_mask(
    tokenizer: Any, tokens: list[int], labels: list[int] | None, is_padded: bool
) -> None:
    record = {"t": tokens, "l": labels}
    settings = {} if labels is None else {"labels": "l"}
    if not is_padded:
        assert single_example(record, tokenizer, **settings).input_ids.tolist() == tokens
        return
    with pytest.raises(UserError, match=r"row 7 of f (begins|ends) with several tokens"):
        single_example(record, tokenizer, **settings)
    with pytest.raises(UserError, match=r"query '0' (begins|ends) with several tokens"):
        given_labels = {} if labels is None else {"labels": labels}
        query_example(as_query({"tokens": tokens, **given_labels}, 0), tokenizer, 1000, 512)
