"""Invariant: each token of a record is in one example, with its label; of pairs only the completion is scored.

If this breaks, losses and gradients belong to another text than the one in the report.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.config import CorpusConfig
from lorif_core.corpus.tokenise import Example, chunk_bounds, make_examples
from lorif_core.errors import UserError
from tests.tiny_tokenizer import BOS, VOCAB, byte_tokenizer

PLAIN = byte_tokenizer()
WITH_BOS = byte_tokenizer(bos=True)
PAIR = {"prompt": "p", "completion": "c"}


def ids_of(text: str) -> list[int]:
    return PLAIN(text)["input_ids"]


def examples(record: dict[str, Any], tokenizer: Any = PLAIN, **corpus: Any) -> list[Example]:
    return make_examples(
        7, record, "a/b.jsonl", tokenizer, CorpusConfig(uri="x", **{"max_length": 512, **corpus}), VOCAB
    )


def single_example(record: dict[str, Any], tokenizer: Any = PLAIN, **corpus: Any) -> Example:
    (example,) = examples(record, tokenizer, **corpus)
    return example


@given(st.integers(0, 200), st.integers(2, 40))
def test_chunks_cover_everything_once(total: int, max_length: int) -> None:
    bounds = chunk_bounds(total, max_length)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(total))
    lengths = [stop - start for start, stop in bounds]
    assert max(lengths) <= max_length
    if total >= 2 and max_length > 2:
        assert min(lengths) >= 2
    assert all(length == max_length for length in lengths[:-2])


def test_a_last_block_of_one_token_gets_another_unless_blocks_have_two() -> None:
    assert chunk_bounds(9, 4) == [(0, 4), (4, 7), (7, 9)]
    assert chunk_bounds(4, 3) == [(0, 2), (2, 4)]
    assert chunk_bounds(5, 2) == [(0, 2), (2, 4), (4, 5)]
    assert chunk_bounds(1, 4) == [(0, 1)]
    assert chunk_bounds(0, 4) == [(0, 0)]


@given(st.text(max_size=40), st.text(max_size=40), st.integers(2, 12))
def test_chunked_pairs_carry_ids_and_labels(prompt: str, completion: str, max_length: int) -> None:
    record = {"p": prompt, "c": completion}
    chunks = examples(record, **PAIR, chunk=True, max_length=max_length)
    prompt_ids, completion_ids = ids_of(prompt), ids_of(completion)
    labels = [-100] * len(prompt_ids) + completion_ids
    assert np.concatenate([chunk.input_ids for chunk in chunks]).tolist() == prompt_ids + completion_ids
    assert np.concatenate([chunk.labels for chunk in chunks]).tolist() == labels
    assert [chunk.example_id for chunk in chunks] == [f"a/b.jsonl#7/{k}" for k in range(len(chunks))]


@given(st.integers(0, 12), st.integers(0, 12), st.integers(2, 10))
def test_truncation_retains_the_completion(before: int, after: int, max_length: int) -> None:
    prompt, completion = "abcdefghijkl"[:before], "ABCDEFGHIJKL"[:after]
    example = single_example({"p": prompt, "c": completion}, **PAIR, max_length=max_length)
    retained = min(before, max(1, max_length - after))
    expected = prompt[before - retained :] + completion[: max_length - retained]
    assert PLAIN.decode(example.input_ids.tolist()) == expected
    assert len(example.input_ids) == min(before + after, max_length)
    # all retained completion tokens are scored, the first one only if a prompt token precedes it
    assert example.scored == max(0, min(after, max_length - retained) - (retained == 0))


def test_text_gets_the_tokenizers_special_tokens_and_is_cut() -> None:
    example = single_example({"text": "hello"}, WITH_BOS, max_length=4)
    assert example.input_ids.tolist() == [BOS, *ids_of("hel")]
    assert example.labels.tolist() == example.input_ids.tolist()
    assert (example.example_id, example.row, example.text, example.scored) == ("a/b.jsonl#7", 7, "hello", 3)
    assert example.input_ids.dtype == example.labels.dtype == np.int32


def test_only_the_prompt_gets_special_tokens() -> None:
    example = single_example({"p": "", "c": "xy"}, WITH_BOS, **PAIR)
    assert example.input_ids.tolist() == [BOS, *ids_of("xy")]
    assert (example.scored, example.text) == (2, "xy")


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS], ids=["plain", "bos"])
@pytest.mark.parametrize("chunk", [False, True])
def test_an_empty_text_has_nothing_to_score(tokenizer: Any, chunk: bool) -> None:
    example = single_example({"text": ""}, tokenizer, chunk=chunk)
    assert (len(example.input_ids), example.scored, example.text) == (0, 0, "")


def test_tokens_take_precedence_and_are_decoded() -> None:
    tokens = ids_of("abcdef")
    example = single_example({"t": tokens, "text": "other"}, tokens="t", **PAIR, max_length=3)
    assert example.input_ids.tolist() == tokens[:3]
    assert example.text == "abcdef"
    assert single_example({"t": np.asarray(tokens)}, None, tokens="t").text is None


def test_labels_of_tokens() -> None:
    example = single_example({"t": [1, 2, 3], "l": [-100, -100, 5]}, tokens="t", labels="l")
    assert (example.labels.tolist(), example.scored) == ([-100, -100, 5], 1)


def test_ids_and_texts_of_chunks() -> None:
    chunks = examples({"key": 12, "text": "abcdefg"}, id="key", chunk=True, max_length=3)
    assert [chunk.example_id for chunk in chunks] == ["12/0", "12/1", "12/2"]
    assert [chunk.text for chunk in chunks] == ["abc", "de", "fg"]
    uncut = single_example({"key": "x/0", "text": "abc"}, WITH_BOS, id="key", chunk=True)
    assert (uncut.example_id, uncut.text) == ("x/0/0", "abc")
    assert all(
        chunk.text is None for chunk in examples({"text": "abcdefg"}, chunk=True, max_length=3, store_text=False)
    )
    assert single_example({"text": "abc"}, store_text=False).text is None


def test_the_content_hash_depends_on_ids_and_labels() -> None:
    plain = single_example({"t": [1, 2, 3]}, tokens="t")
    assert len(bytes.fromhex(plain.content_hash)) == 16
    renamed = single_example({"text": "", "t": [1, 2, 3], "k": "other"}, tokens="t", id="k")
    assert plain.content_hash == renamed.content_hash
    masked = single_example({"t": [1, 2, 3], "l": [-100, 2, 3]}, tokens="t", labels="l")
    changed = single_example({"t": [1, 2, 4]}, tokens="t")
    assert len({plain.content_hash, masked.content_hash, changed.content_hash}) == 3


TOKENS = {"tokens": "t"}
LABELS = {"tokens": "t", "labels": "l"}


@pytest.mark.parametrize(
    ("record", "corpus", "reason"),
    [
        ({"text": None}, {}, "must be a string, but is null"),
        ({"text": 3}, {}, "must be a string, but is int"),
        ({"text": "\ud800"}, {}, "half of a surrogate pair"),
        ({"p": None, "c": "x"}, PAIR, "the prompt of row 7"),
        ({"p": "x", "c": None}, PAIR, "the completion of row 7"),
        ({"t": [1, VOCAB]}, TOKENS, f"contain {VOCAB}; the model accepts 0 to {VOCAB - 1}"),
        ({"t": [-1]}, TOKENS, "contain -1"),
        ({"t": [1.5]}, TOKENS, "must be a list of integers"),
        ({"t": [True]}, TOKENS, "must be a list of integers"),
        ({"t": "12"}, TOKENS, "must be a list of integers"),
        ({"t": None}, TOKENS, "must be a list of integers"),
        ({"t": [2**70]}, TOKENS, "more than 64 bits"),
        ({"t": [1, 2], "l": [1]}, LABELS, "2 tokens and 1 labels"),
        ({"t": [1, 2], "l": [1, -1]}, LABELS, "contain -1; the model accepts 0 to 256 or -100"),
        ({"t": [1, 2], "l": [1, None]}, LABELS, "the labels of row 7"),
        ({"text": "x", "k": None}, {"id": "k"}, "null id"),
    ],
)
def test_errors_name_row_and_file(record: dict[str, Any], corpus: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        examples(record, **corpus)
    assert "row 7 of a/b.jsonl" in str(caught.value)


def test_text_needs_a_tokenizer_that_fits_the_model() -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        examples({"text": "x"}, None)
    with pytest.raises(UserError, match="the tokenizer's ids for row 0"):
        make_examples(0, {"text": "x"}, "f", WITH_BOS, CorpusConfig(uri="x"), BOS)
