"""Index one corpus shard into uncommitted fragments and a receipt: the unit of work of a build. Idempotent."""

import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from lorif_core.config import Config, ModelConfig
from lorif_core.corpus.batches import collate
from lorif_core.corpus.chat_template import corpus_template
from lorif_core.corpus.columns import needed_columns, optional_columns
from lorif_core.corpus.records import has_unicode
from lorif_core.corpus.shards import read_rows
from lorif_core.corpus.tokenise import Example, make_examples
from lorif_core.errors import UserError
from lorif_core.gradients.extract import STORED_DTYPES, Extraction, Extractor
from lorif_core.gradients.token_budget import TokenBudget
from lorif_core.lifecycle.removal import REMOVED, read_removals
from lorif_core.model.loading import LoadedModel, check_same_checkpoint, load_model
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tables.blocks import block_rows
from lorif_core.tables.receipts import JoinedReceipt, Receipt, Receipts
from lorif_core.tables.schema import ShardRows
from lorif_core.tables.store import Store

NO_SCORED_TOKEN = "no token is scored"

_NO_TOKENS = np.zeros(0, np.int32)


class ShardIndexer:
    """Indexes shards with one loaded model, several at a time: one computes while others read and write.

    Args:
        config: configuration of the build.
        spec: spec of its rows.
        loaded: the model, if it is loaded and has passed the self-check with the layers of the spec.

    Raises:
        UserError: the checkpoint or its tokenizer differs from that of the spec, or a layer cannot be captured.
    """

    def __init__(self, config: Config, spec: IndexSpec, loaded: LoadedModel | None = None) -> None:
        self._config = config
        self._spec = spec
        self._store = Store(config.index, config.storage)
        self._loaded = loaded or load_for(spec, config)
        self._budget = token_budget(config, self._loaded)
        roots = self._store.whitenings.roots(spec.projection.whitening)
        scales = self._store.scales.read(spec.projection)
        self._extractor = Extractor(self._loaded, spec.layers, spec.projection, spec.code, roots, scales)
        if loaded is None:
            self._extractor.check()
        self._rows_at_once = block_rows(self._extractor.layout, config.compute.memory_gb)
        self._receipts = Receipts(config.index, config.storage)
        self._removals = read_removals(self._store, spec)
        # only this thread uses the model: several threads that compute would compete for the cores
        self._compute = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")

    @property
    def loaded(self) -> LoadedModel:
        """The model, which has passed the self-check."""
        return self._loaded

    def index(self, shard: ShardRef) -> Receipt:
        """Index one shard, in parts that fit into the configured memory, and write its receipt.

        Raises:
            CorpusChangedError: the file has changed since it was listed.
            DamagedFileError: the file is cut off, or its bytes cannot be decoded.
            UserError: a record does not match the configuration, or the storage refuses access.
            StoreUnavailableError: the storage fails repeatedly.
        """
        started = time.perf_counter()
        counts = _ShardCounts()
        fragments = self._store.rows.write(self._parts(shard, counts), shard, self._spec)
        receipt = Receipt(
            shard.key,
            tuple(fragments),
            counts.rows,
            counts.tokens,
            counts.padded,
            tuple(counts.skipped),
            time.perf_counter() - started,
        )
        self._receipts.write(receipt, self._spec.hash)
        return receipt

    def join(self, receipts: Sequence[Receipt]) -> JoinedReceipt:
        """Join the rows of finished shards in one fragment, and write its receipt; see `RowTable.join`."""
        joined = self._store.rows.join(receipts)
        self._receipts.write(joined, self._spec.hash)
        return joined

    def read(self, shard: ShardRef) -> Iterator[Example]:
        """The shard's examples, in the order of the file."""
        return read_examples(shard, self._config, self._loaded)

    def _parts(self, shard: ShardRef, counts: "_ShardCounts") -> Iterator[ShardRows]:
        examples = self.read(shard)
        while part := list(islice(examples, self._rows_at_once)):
            rows, skipped, padded = self._compute.submit(self.encode, part).result()
            counts.rows += len(rows.examples)
            counts.tokens += sum(len(example.input_ids) for example in rows.examples)
            counts.padded += padded
            counts.skipped += skipped
            yield rows

    def encode(self, examples: Sequence[Example]) -> tuple[ShardRows, list[tuple[str, str]], int]:
        """Encode examples.

        Returns:
            Rows to store in the order of `examples`, (id, reason) of skipped examples, and the number of tokens
            that were run, including padding.
        """
        reasons: dict[int, str] = {}
        for i, example in enumerate(examples):
            if self._removals.has(example.example_id, example.content_hash):
                reasons[i] = REMOVED
            elif example.fault is not None:
                reasons[i] = example.fault
            elif example.scored == 0:
                reasons[i] = NO_SCORED_TOKEN
        scored = [i for i in range(len(examples)) if i not in reasons]
        layout = self._extractor.layout
        losses = np.zeros(len(examples), np.float32)
        codes = np.zeros((len(examples), layout.stored_width), STORED_DTYPES[layout.code.dtype])
        scales = np.zeros((len(examples), layout.scales), np.float32)
        padded = 0
        running: list[tuple[list[int], Extraction]] = []

        def keep() -> None:
            indices, extraction = running.pop(0)
            result = extraction.result()
            losses[indices], codes[indices], scales[indices] = result.losses, result.codes, result.scales
            reasons.update({i: fault for i, fault in zip(indices, result.faults, strict=True) if fault})

        def run(positions: list[int]) -> None:
            nonlocal padded
            indices = [scored[position] for position in positions]
            batch = collate(examples, indices)
            running.append((indices, self._extractor.start(batch)))
            padded += batch.input_ids.size
            if len(running) > 1:  # one batch is kept while a GPU runs the next
                keep()

        self._budget.run([len(examples[i].input_ids) for i in scored], run, most_rows=self._rows_at_once)
        while running:
            keep()
        stored = [i for i in range(len(examples)) if i not in reasons]
        rows = ShardRows([examples[i] for i in stored], losses[stored], codes[stored], scales[stored])
        return rows, [(examples[i].example_id, reason) for i, reason in sorted(reasons.items())], padded


@dataclass(frozen=True, slots=True)
class Tokenising:
    """What reading examples needs of a model: its tokenizer, and the number that token ids are below."""

    tokenizer: PreTrainedTokenizerBase | None
    vocab_size: int


def read_examples(
    shard: ShardRef, config: Config, loaded: LoadedModel | Tokenising, rows: Set[int] | None = None
) -> Iterator[Example]:
    """The shard's examples, in the order of the file, or those of some rows.

    A record that is not text gives an example with a fault.
    """
    corpus = config.corpus
    columns, optional = needed_columns(corpus), optional_columns(corpus)
    for row, record in read_rows(shard, columns, config.storage, optional, corpus.binary):
        if rows is not None and row not in rows:
            continue
        faulty = [column for column, value in record.items() if not has_unicode(value)]
        if not faulty:
            yield from make_examples(row, record, shard.name, loaded.tokenizer, corpus, loaded.vocab_size)
            continue
        example_id = f"{shard.name}#{row}" if corpus.id is None or corpus.id in faulty else str(record[corpus.id])
        yield Example(
            example_id, row, _NO_TOKENS, _NO_TOKENS, None, "",
            fault=f"half of a surrogate pair, which is not text, in the column {faulty[0]!r}",
        )  # fmt: skip


@dataclass(slots=True)
class _ShardCounts:
    """Counts of a shard, summed over its parts."""

    rows: int = 0
    tokens: int = 0
    padded: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def load_for(spec: IndexSpec, config: Config) -> LoadedModel:
    """Load the config's model.

    Raises:
        UserError: the checkpoint, its tokenizer or its chat template differs from that of the spec.
    """
    loaded = load_model(model_config(config, spec), config.storage)
    check_same_checkpoint(config.model, config.storage, loaded, spec)
    template = corpus_template(config.corpus, loaded.tokenizer)
    if (None if template is None else template.to_json()) != spec.tokenisation.chat:
        raise UserError(f"the chat template of {config.model.path} changed after the plan was made; run it again")
    return loaded


def token_budget(config: Config, loaded: LoadedModel, automatic: int | None = None) -> TokenBudget:
    """The size of batches for a model; `automatic` is that of `auto`, which else takes what fits."""
    tokens, longest = config.compute.tokens_per_batch, config.corpus.longest
    if tokens == "auto" and automatic is not None:
        tokens = max(automatic, longest)
    return TokenBudget(tokens, longest, loaded.devices)


def model_config(config: Config, spec: IndexSpec) -> ModelConfig:
    """The model section with the dtype of the spec, so that every worker loads the same weights."""
    return config.model.model_copy(update={"dtype": spec.model_dtype})
