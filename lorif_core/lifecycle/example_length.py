"""The longest example of an index: a number of the config, or under `max_length: auto` what a sample suggests."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lorif_core.config import Config, CorpusConfig
from lorif_core.corpus.columns import needed_columns, optional_columns
from lorif_core.corpus.shards import read_rows
from lorif_core.corpus.tokenise import make_examples
from lorif_core.errors import LorifError
from lorif_core.model.loading import Skeleton
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tables.store import Store

log = logging.getLogger(__name__)

_LEAST, _MOST, _STEP = 512, 2048, 64  # tokens; more must be asked for, since memory grows with the longest example
_UNCUT_SHARE = 0.99
_ROWS, _SHARDS = 1024, 32  # of the sample
_UNLIMITED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ExampleLength:
    """The maximum length of an example, and tokens of sampled records before they are cut, (records,) int64."""

    longest: int
    sampled: np.ndarray
    chunk: bool

    def sentence(self) -> str:
        """One line for `lorif check` and the log of a build."""
        begin = f"examples of at most {self.longest:,} tokens (corpus.max_length)"
        if not len(self.sampled):
            return begin
        share, what = np.mean(self.sampled > self.longest), "cut into blocks" if self.chunk else "truncated"
        return (
            f"{begin}; of {len(self.sampled):,} sampled records {share:.1%} are longer and are {what}, and the "
            f"longest has {self.sampled.max():,}"
        )


def with_stored_length(config: Config) -> Config:
    """The config with the length of the index in the place of `auto`, if there is an index."""
    if config.corpus.max_length != "auto":
        return config
    stored = Store(config.index, config.storage).newest_spec()
    return config if stored is None else settled(config, stored)


def settled(config: Config, spec: IndexSpec) -> Config:
    """The config with the length of a spec in the place of `auto`."""
    return _with(config, spec.tokenisation.max_length) if config.corpus.max_length == "auto" else config


def measured_length(
    config: Config, skeleton: Skeleton, shards: Sequence[ShardRef]
) -> tuple[Config, ExampleLength]:
    """The config with a number in the place of `auto`, and what a sample says about that number.

    An index keeps its number. Otherwise `auto` leaves 99 of 100 records whole if they have at most 2,048 tokens.
    It takes at least 512, since short examples cost the same with a higher limit, and questions may be longer than
    they. With `chunk` it takes 512: nothing is lost, and short blocks show more exactly what matters.
    """
    config = with_stored_length(config)
    sampled = np.array(list(_sampled_lengths(config, skeleton.tokenizer, shards)), np.int64)
    if config.corpus.max_length == "auto":
        most = [
            limit for limit in (skeleton.max_positions, config.compute.tokens_per_batch) if isinstance(limit, int)
        ]
        config = _with(config, min([automatic_length(sampled, config.corpus.chunk), *most]))
    return config, ExampleLength(config.corpus.longest, sampled, config.corpus.chunk)


def automatic_length(sampled: np.ndarray, chunk: bool) -> int:
    """The length that `auto` takes for records of these lengths if model and batches have no lower limit."""
    if chunk or not len(sampled):
        return _LEAST
    usual = int(np.quantile(sampled, _UNCUT_SHARE, method="higher"))
    return min(max(-(-usual // _STEP) * _STEP, _LEAST), _MOST)


def _with(config: Config, longest: int) -> Config:
    return config.model_copy(update={"corpus": config.corpus.model_copy(update={"max_length": longest})})


def _sampled_lengths(
    config: Config, tokenizer: PreTrainedTokenizerBase | None, shards: Sequence[ShardRef]
) -> Iterator[int]:
    """Tokens of records from the starts of shards that are spread over the corpus; the same for a given corpus."""
    chosen = shards[:: -(-len(shards) // _SHARDS)] if shards else []
    corpus = config.corpus
    columns, optional = needed_columns(corpus), optional_columns(corpus)
    for shard in chosen:
        records = read_rows(shard, columns, config.storage, optional, corpus.binary)
        try:
            yield from record_lengths(islice(records, -(-_ROWS // len(chosen))), shard.name, corpus, tokenizer)
        except LorifError as error:
            log.debug("the sample skips a shard, which the build will report: %s", error)


def record_lengths(
    records: Iterable[tuple[int, Mapping[str, Any]]],
    name: str,
    corpus: CorpusConfig,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Iterator[int]:
    """Tokens of records before they are cut; arguments and errors are those of `make_examples`."""
    whole = corpus.model_copy(update={"max_length": _UNLIMITED, "chunk": False, "store_text": False})
    for row, record in records:
        (example,) = make_examples(row, record, name, tokenizer, whole, _UNLIMITED)
        yield len(example.input_ids)
