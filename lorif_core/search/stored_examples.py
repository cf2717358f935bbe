"""Makes the tokens and labels of stored training examples again, exactly as they were indexed.

The index stores of an example its text and a hash of its tokens and labels. So a guess can be checked: the stored
text is tokenised, and the prompt, which has no loss, may end at any token. Of a conversation, the assistant has a
loss. If no guess has the hash, the record is read from its file again, unless the file has changed or is too large
to look for one record in it.

Shapes: T tokens of an example.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.chat_template import ChatTemplate
from lorif_core.corpus.columns import needed_columns, optional_columns
from lorif_core.corpus.messages import ASSISTANT
from lorif_core.corpus.shards import read_rows
from lorif_core.corpus.tokenise import Example, TokenSequence, make_example, make_examples
from lorif_core.corpus.turns import Turn, turns_from_json
from lorif_core.errors import LorifError
from lorif_core.search.token_texts import token_spans
from lorif_core.spec import MASKED, ShardRef, TokenSpec, parse_shard_key
from lorif_core.tables.checksums import TURNS

_MOST_ENDS = 3  # tokens that end a turn of a conversation, and are scored with it
_MAX_FILE_BYTES = 2**28  # lines have no index, so a record in the middle is found by reading all before it


@dataclass(frozen=True, slots=True)
class StoredExample:
    """An example as it was indexed, and for each of its T tokens (start, end) in characters of its stored text."""

    example: Example
    spans: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Guess:
    """Ids and labels (T,) int32, their numbers among all tokens of the text, and the characters of these."""

    ids: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    spans: Sequence[tuple[int, int]]


class StoredExamples:
    """Restores the examples of one spec.

    Args:
        tokens: how records became tokens.
        tokenizer: of the model; None if it has none.
        vocab_size: of the model.
        storage: how to read the files of the corpus.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        tokenizer: PreTrainedTokenizerBase | None,
        vocab_size: int,
        storage: StorageConfig,
    ) -> None:
        self._spec, self._tokenizer, self._vocab_size, self._storage = tokens, tokenizer, vocab_size, storage

    def restore(self, row: Mapping[str, Any]) -> StoredExample | str:
        """The example of a row (its descriptive columns), or a clause that says why there is none."""
        text = row.get("text")
        if text is None:
            return "the index stores no texts"
        for guess in self._guesses(text, row["tokens"], turns_from_json(row.get(TURNS))):
            example = make_example(row["example_id"], row["row"], guess.ids, guess.labels, text)
            if example.content_hash == row["content_hash"]:
                return StoredExample(example, [guess.spans[number] for number in guess.numbers])
        read = self._read(row)
        if read is None:
            return "its tokens do not follow from its text, and its record cannot be read again"
        spans = token_spans(read.input_ids.tolist(), text, self._tokenizer)
        if spans is None:
            return "its tokens cannot be found in its text"
        return StoredExample(read, spans)

    def _guesses(self, text: str, count: int, turns: Sequence[Turn]) -> Iterator["_Guess"]:
        """What the text may have been as `count` tokens."""
        if self._tokenizer is None:
            return
        tried: np.ndarray | None = None
        for with_special in (True, False):
            ids, spans, lead = _tokenised(text, self._tokenizer, with_special)
            if len(ids) < count or (tried is not None and np.array_equal(ids, tried)):
                continue
            tried, numbers = ids, np.arange(len(ids), dtype=np.int32)
            for labels in self._labels(ids, spans, turns):
                prompt = int(np.argmax(labels != MASKED)) if self._spec.tokens is None else 0
                cut = TokenSequence(numbers, labels, prompt, None, min(lead, prompt)).truncated(
                    self._spec.max_length
                )
                if len(cut.ids) == count:
                    yield _Guess(ids[cut.ids], cut.labels, cut.ids, spans)

    def _labels(
        self, ids: np.ndarray, spans: Sequence[tuple[int, int]], turns: Sequence[Turn]
    ) -> Iterator[np.ndarray]:
        """Labels (T,) that the tokens may have had."""
        if self._spec.text is not None:
            yield ids
            return
        starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        said = [(starts < turn.end) & (ends > turn.start) for turn in turns if turn.role == ASSISTANT]
        for after in range(_MOST_ENDS + 1 if said else 0):
            scored = np.any([_extended(turn, after) for turn in said], axis=0)
            yield np.where(scored, ids, MASKED).astype(np.int32)
        for prompt in range(len(ids)):
            yield np.where(np.arange(len(ids)) < prompt, MASKED, ids).astype(np.int32)

    def _read(self, row: Mapping[str, Any]) -> Example | None:
        """The example from its record; None if the file cannot be read, has changed, or gives another example."""
        file, _, _ = parse_shard_key(row["shard"])
        if file.size > _MAX_FILE_BYTES and not file.name.lower().endswith((".parquet", ".arrow")):
            return None
        corpus = _corpus_of(self._spec, row["uri"])
        shard = ShardRef(row["uri"], file.name, file.etag, file.size, row["row"], 1)
        try:
            records = list(read_rows(shard, needed_columns(corpus), self._storage, optional_columns(corpus)))
            made = [
                make_examples(number, record, file.name, self._tokenizer, corpus, self._vocab_size)
                for number, record in records
            ]
        except LorifError:
            return None
        examples = (example for examples in made for example in examples)
        return next((example for example in examples if example.content_hash == row["content_hash"]), None)


def _corpus_of(spec: TokenSpec, uri: str) -> CorpusConfig:
    """The section `corpus` that a spec comes from, except the parts of it that a spec does not have."""
    known = {name: value for name, value in asdict(spec).items() if value is not None}
    columns = {name: value for name, value in known.items() if name in CorpusConfig.model_fields}
    if "+" in (spec.prompt or ""):
        columns["prompt"] = tuple((spec.prompt or "").split("+"))
    if spec.chat is not None:
        columns["chat_template"] = ChatTemplate.from_json(spec.chat).source
    return CorpusConfig(uri=uri, **columns)


def _tokenised(
    text: str, tokenizer: PreTrainedTokenizerBase, with_special: bool
) -> tuple[np.ndarray, list[tuple[int, int]], int]:
    """Ids (T,) int32, the characters of each token, and the number of special tokens in front."""
    offsets = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
    encoding = tokenizer(
        text, add_special_tokens=with_special, return_special_tokens_mask=True, verbose=False, **offsets
    )
    ids = np.asarray(encoding["input_ids"], dtype=np.int64).astype(np.int32)
    spans = encoding.get("offset_mapping") or token_spans(ids.tolist(), text, tokenizer) or [(0, 0)] * len(ids)
    special = encoding["special_tokens_mask"]
    lead = next((number for number, flag in enumerate(special) if not flag), len(ids))
    return ids, [tuple(span) for span in spans], lead


def _extended(turn_T: np.ndarray, after: int) -> np.ndarray:
    """The tokens of a turn and some tokens after it, such as those that end it."""
    numbers = np.flatnonzero(turn_T)
    extended_T = turn_T.copy()
    if len(numbers):
        extended_T[numbers[-1] : numbers[-1] + after + 1] = True
    return extended_T


def placed(spans: Sequence[tuple[int, int]], values: Sequence[float]) -> list[tuple[int, int, float]]:
    """Ascending, disjoint (start, end, value) of tokens; those that share a character are one, with one sum.

    A token without characters gets the place where the token before it ends. Without a value it is left out.
    """
    result: list[tuple[int, int, float]] = []
    stop = 0
    for (start, end), value in zip(spans, values, strict=True):
        if start >= end:
            if value:
                result.append((stop, stop, value))
        elif start < stop:
            first, _, earlier = result.pop()
            result.append((first, max(stop, end), earlier + value))
            stop = max(stop, end)
        else:
            result.append((start, end, value))
            stop = end
    return result
