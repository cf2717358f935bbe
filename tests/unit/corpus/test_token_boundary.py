"""Invariant: the tokens of a pair are those of its text, and those that end after the prompt are scored.

If this breaks, a model is attributed for a text that no tokenizer makes, or for parts of the prompt.
"""

import unicodedata
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import ByT5Tokenizer

from lorif_core.corpus.tokenise import TokenSequence, encode_pair, encode_text
from lorif_core.errors import UserError
from lorif_core.search.queries import Query, query_example
from lorif_core.search.token_texts import token_texts
from tests import tokenizer_kinds as kinds
from tests.tokenizer_kinds import Kind, made

PIECES = (
    " ", "  ", "\n", "\t", "\N{NO-BREAK SPACE}", "the", "cat", " cat", "e", "x", "E", "s", "1", ".", "é", "İ", "ﬁ",
    "\N{COMBINING ACUTE ACCENT}", "\N{COMBINING DOT BELOW}", "🙂", "👩\u200d👧", "日", "ｶ", "ﾞ",
    "\N{HANGUL CHOSEONG KIYEOK}", "\N{HANGUL JUNGSEONG A}", "\N{HANGUL JONGSEONG KIYEOK}", "\ufffd", "\x00",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=8)
each_kind = pytest.mark.parametrize("kind", kinds.ALL, ids=lambda kind: kind.__name__)


def encode(kind: Kind, prompt: str, completion: str) -> TokenSequence:
    return encode_pair(prompt, completion, made(kind), 1000, "row 0")


def is_separable(text: str, at: int) -> bool:
    before, after = (unicodedata.normalize("NFKC", part) for part in (text[:at], text[at:]))
    return unicodedata.normalize("NFKC", text) == before + after


@each_kind
@given(TEXTS, TEXTS)
@example("", "the cat")
@example("  ", "🙂")
@example("the ", "cat")
@example("the", "")
@example("", "")
def test_a_pair_has_the_tokens_of_its_text_and_one_part_of_them_is_scored(
    kind: Kind, prompt: str, completion: str
) -> None:
    pair = encode(kind, prompt, completion)
    assert pair.ids.tolist() == made(kind)(prompt + completion)["input_ids"]
    assert pair.labels.tolist() == [-100] * pair.prompt + pair.ids[pair.prompt :].tolist()
    assert 0 <= pair.lead <= pair.prompt <= len(pair.ids)
    if prompt + completion:
        text = encode_text(prompt + completion, made(kind), 1000, "row 0")
        assert np.array_equal(pair.ids, text.ids)
    if not completion:
        assert pair.prompt == len(pair.ids)


@pytest.mark.parametrize("kind", kinds.LOSSLESS, ids=lambda kind: kind.__name__)
@given(TEXTS, TEXTS)
@example("", " cat")
@example(" ", "🙂")
@example("the", " cat")
@example("a ", "b")
@example("the", " ")
@example("👩", "\u200d👧")
def test_a_token_with_a_byte_of_the_completion_is_scored(kind: Kind, prompt: str, completion: str) -> None:
    """The bytes of the tokens say where each ends, without their offsets."""
    if not completion:
        return
    pair = encode(kind, prompt, completion)
    pieces = kinds.text_bytes(made(kind), pair.ids.tolist())
    joined, text = b"".join(pieces), (prompt + completion).encode()
    added = len(joined) - len(text)  # a space in front
    assert joined[added:] == text and added in (0, 1)
    boundary = added + len(prompt.encode()) if prompt else 0
    assert pair.prompt == next(i for i, end in enumerate(accumulate(map(len, pieces))) if end > boundary)


@pytest.mark.parametrize("kind", [kinds.llama3, kinds.roberta, kinds.words_with_spaces_behind])
@given(TEXTS, TEXTS)
def test_offsets_without_spaces_change_nothing(kind: Kind, prompt: str, completion: str) -> None:
    whole = kind()
    state = whole.backend_tokenizer.post_processor.__getstate__().replace(b'_offsets":true', b'_offsets":false')
    processor = processors.Sequence([])
    processor.__setstate__(state)
    whole.backend_tokenizer.post_processor = processor
    assert encode_pair(prompt, completion, whole, 1000, "row 0").prompt == encode(kind, prompt, completion).prompt


@each_kind
@given(TEXTS, TEXTS)
def test_where_unicode_joins_nothing_the_offsets_tell_the_boundary(
    kind: Kind, prompt: str, completion: str
) -> None:
    text = prompt + completion
    if not is_separable(text, len(prompt)) or kind in (
        kinds.llama3,
        kinds.roberta,
        kinds.words_with_spaces_behind,
    ):
        return
    encoding = made(kind)(text, return_offsets_mapping=True)
    ends = [end for _, end in encoding["offset_mapping"]]
    expected = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ends))
    assert encode(kind, prompt, completion).prompt == expected


@pytest.mark.parametrize(
    ("prompt", "completion", "scored"),
    [
        ("xe", "\u0301", "é"),
        ("xe\u0301", "\u0323x", "ẹ\u0301x"),
        ("x\u1100", "\u1161\u11a8", "각"),
        ("x\u1100\u1161", "\u11a8", "각"),
        ("xé", "x", "x"),
        ("x\u0301", "x", "x"),
        ("e\u0301", "tude", "tude"),
    ],
)
def test_a_character_that_is_composed_of_both_belongs_to_the_completion(
    prompt: str, completion: str, scored: str
) -> None:
    """An offset would give it to the prompt, as the composed character begins there and is not said to go on."""
    pair = encode(kinds.qwen2, prompt, completion)
    assert made(kinds.qwen2).decode(pair.ids[pair.prompt :]) == scored


def test_a_tokenizer_that_composes_nothing_keeps_the_accent_apart() -> None:
    pair = encode(kinds.gpt2, "xe", "\u0301")
    assert made(kinds.gpt2).decode(pair.ids[pair.prompt :]) == "\u0301"


def test_special_tokens_are_where_the_tokenizer_puts_them() -> None:
    after = encode(kinds.gpt2_appends_eos, "the", " cat")
    assert made(kinds.gpt2_appends_eos).convert_ids_to_tokens(after.ids) == ["the", "Ġcat", "</s>"]
    assert (after.prompt, after.lead, after.labels[-1]) == (1, 0, 2)
    before = encode(kinds.llama2, "the", " cat")
    assert made(kinds.llama2).convert_ids_to_tokens(before.ids) == ["<s>", "▁the", "▁cat"]
    assert (before.prompt, before.lead) == (2, 1)


def test_the_special_tokens_in_front_stay_when_the_prompt_is_cut() -> None:
    pair = encode(kinds.llama3, "the cat sat on the mat,", " and the dog")
    tokens = made(kinds.llama3).convert_ids_to_tokens
    assert tokens(pair.truncated(6).ids) == ["<s>", "Ġmat", ",", *tokens(pair.ids[pair.prompt :])]
    for max_length in range(2, len(pair.ids) + 2):
        cut = pair.truncated(max_length)
        assert len(cut.ids) == min(max_length, len(pair.ids)) and np.count_nonzero(cut.labels[1:] != -100)
        assert cut.labels.tolist() == [-100] * cut.prompt + cut.ids[cut.prompt :].tolist()
        assert tokens(cut.ids[[0]]) == (["<s>"] if cut.prompt > 1 else [","])


@each_kind
@given(TEXTS, TEXTS)
def test_queries_are_tokenised_as_rows_are(kind: Kind, prompt: str, completion: str) -> None:
    pair = encode(kind, prompt, completion)
    query = Query("q", prompt=prompt, completion=completion)
    if np.count_nonzero(pair.labels[1:] != -100) == 0:
        with pytest.raises(UserError, match="no token to score"):
            query_example(query, made(kind), 1000, 512)
        return
    queried = query_example(query, made(kind), 1000, 512)
    assert queried.input_ids.tolist() == pair.ids.tolist() and queried.labels.tolist() == pair.labels.tolist()


@each_kind
@given(TEXTS)
@example("the cat")
@example("🙂 x")
@example("\ufffd\ufffd🙂")
def test_the_texts_of_the_tokens_concatenate_to_the_text(kind: Kind, text: str) -> None:
    tokenizer: Any = made(kind)
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(ids, tokenizer)
    joined = "".join(texts)
    assert len(texts) == len(ids) and joined == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if kind in kinds.LOSSLESS:
        assert joined.removeprefix("<s>").removesuffix("</s>") in (text, f" {text}")


def test_a_tokenizer_without_offsets_is_refused_for_pairs_only() -> None:
    slow = ByT5Tokenizer()
    with pytest.raises(UserError, match=r"row 0 cannot be split .* save its fast version") as caught:
        encode_pair("a", "b", slow, 1000, "row 0")
    assert "ByT5Tokenizer" in str(caught.value)
    assert len(encode_text("ab", slow, 1000, "row 0").ids) == 3
