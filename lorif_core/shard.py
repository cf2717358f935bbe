"""Corpus shard -> uncommitted fragments and a receipt: the unit of work of a build. Idempotent."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorif_core.batches import collate, token_budget_batches
from lorif_core.config import Config, ModelConfig
from lorif_core.corpus import needed_columns, read_rows
from lorif_core.extract import Extractor
from lorif_core.model import LoadedModel, load_model
from lorif_core.schema import ShardRows
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.store import Store
from lorif_core.tokenise import Example, make_examples

NO_SCORED_TOKEN = "no token is scored"


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished shard: metadata of its uncommitted fragments, counts, and what was left out and why."""

    shard: str
    fragments: tuple[str, ...]
    rows: int
    tokens: int
    padded_tokens: int
    skipped: tuple[tuple[str, str], ...]
    seconds: float


class ShardIndexer:
    """Indexes shards with one loaded model.

    Args:
        config: the build's configuration.
        spec: the spec of its rows.
        device: where the model goes; None picks CUDA where there is one.
    """

    def __init__(self, config: Config, spec: IndexSpec, device: str | None = None) -> None:
        self._config = config
        self._spec = spec
        self._store = Store(config.index, config.storage)
        self._loaded = load_model(model_config(config, spec), device)
        self._extractor = Extractor(self._loaded, spec.layers, spec.projection, spec.code)

    @property
    def loaded(self) -> LoadedModel:
        """The model, for whoever else needs it on this worker."""
        return self._loaded

    def index(self, shard: ShardRef) -> Receipt:
        """Read, tokenise, run and write one shard.

        Raises:
            CorpusChangedError: the file is not the one that was listed.
            UserError: a record is not what the configuration says.
        """
        started = time.perf_counter()
        examples = self.read(shard)
        rows, skipped, padded = self.encode(examples)
        fragments = self._store.write_rows(rows, shard, self._spec)
        return Receipt(
            shard.key,
            tuple(fragments),
            len(rows.examples),
            sum(len(example.input_ids) for example in rows.examples),
            padded,
            tuple(skipped),
            time.perf_counter() - started,
        )

    def read(self, shard: ShardRef) -> list[Example]:
        """The shard's examples, in the order of the file."""
        corpus, loaded = self._config.corpus, self._loaded
        return [
            example
            for row, record in read_rows(shard, needed_columns(corpus), self._config.storage)
            for example in make_examples(row, record, shard.name, loaded.tokenizer, corpus, loaded.vocab_size)
        ]

    def encode(self, examples: Sequence[Example]) -> tuple[ShardRows, list[tuple[str, str]], int]:
        """Storable rows in the order given, (id, reason) of examples left out, and tokens run with padding."""
        reasons = {i: NO_SCORED_TOKEN for i, example in enumerate(examples) if example.scored == 0}
        scored = [i for i in range(len(examples)) if i not in reasons]
        layout = self._extractor.layout
        losses = np.zeros(len(examples), np.float32)
        codes = np.zeros((len(examples), layout.width), layout.code.dtype)
        scales = np.zeros((len(examples), len(layout.slots)), np.float32)
        padded = 0
        lengths = [len(examples[i].input_ids) for i in scored]
        for chosen in token_budget_batches(lengths, self._config.compute.tokens_per_batch):
            indices = [scored[j] for j in chosen]
            batch = collate(examples, indices)
            padded += batch.input_ids.size
            result = self._extractor.extract(batch)
            losses[indices], codes[indices], scales[indices] = result.losses, result.codes, result.scales
            reasons.update({i: fault for i, fault in zip(indices, result.faults, strict=True) if fault})
        kept = [i for i in range(len(examples)) if i not in reasons]
        rows = ShardRows([examples[i] for i in kept], losses[kept], codes[kept], scales[kept])
        return rows, [(examples[i].example_id, reason) for i, reason in sorted(reasons.items())], padded


def model_config(config: Config, spec: IndexSpec) -> ModelConfig:
    """The model section with its dtype settled, so that every worker loads the same numbers."""
    return config.model.model_copy(update={"dtype": spec.model_dtype})
