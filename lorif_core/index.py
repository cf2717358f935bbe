"""Opening an index and asking it: query -> dense gradient -> folded with H^-1 -> scan -> scores or top-k.

Needs neither Ray nor Prefect. Shapes: Q queries, N rows, L layers, D = d1 d2.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from lorif_core import contributions, selection, totals
from lorif_core.batches import collate, token_budget_batches
from lorif_core.config import ModelConfig, StorageConfig, parse_storage
from lorif_core.errors import UserError
from lorif_core.extract import Extractor
from lorif_core.factors import CodeLayout
from lorif_core.generation import Generation, Part
from lorif_core.metric import LayerMetric, metric_folds, translation
from lorif_core.model import LoadedModel, check_same_checkpoint, load_model
from lorif_core.queries import Query, parsed_queries, query_example
from lorif_core.resident import ROW_ADDRESS, Fold, Resident, ResidentCodes, blocks_within, layers_within
from lorif_core.scoring import FoldedQueries, fold_queries, own_influence, own_scale, relative_to_own, score_rows
from lorif_core.search import Search, Sought, is_worth_a_look, sought
from lorif_core.self_influence import LayerForm, layer_form, self_influences
from lorif_core.spec import CodeSpec, IndexSpec
from lorif_core.store import Block, Store, block_rows
from lorif_core.tables import Tables
from lorif_core.terms import PLAIN, Normalisation, Terms, inverse_root, make_terms
from lorif_core.tokenise import Example
from lorif_core.topk import TopK
from lorif_core.whitening import Covariances

_DENSE = CodeSpec(kind="dense", dtype="float32")
_QUERY_TOKENS_PER_BATCH = 4096
_MEMORY_GB = 1.0  # of a notebook or `lorif query`; builds and batches have compute.memory_gb

_CONDITIONS_KEPT = 8  # whose self-influences are kept

QueryInput = str | Mapping[str, Any] | Query
ModelInput = str | ModelConfig | LoadedModel | None


@dataclass(frozen=True, slots=True)
class QueryGradients:
    """Token-summed losses (Q,) and projected gradients, per layer (Q, D) float32."""

    losses: np.ndarray
    layers: list[torch.Tensor]

    def rows(self, chosen: slice) -> "QueryGradients":
        """Some of the queries."""
        return QueryGradients(self.losses[chosen], [layer[chosen] for layer in self.layers])


class QueryEncoder:
    """Turns queries into full-precision projected gradients in the metric of one spec; dense, unless `factored`.

    Args:
        loaded: the model that the index was built with.
        spec: spec of the index.
        covariances: of a whitened projection.
        factored: keep only the rank of the stored codes of a query too, as the paper does.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        spec: IndexSpec,
        covariances: Covariances | None = None,
        *,
        factored: bool = False,
    ) -> None:
        self._loaded = loaded
        self._spec = spec
        code = CodeSpec("rank", spec.code.rank, "float32") if factored else _DENSE
        self._extractor = Extractor(loaded, spec.layers, spec.projection, code, covariances)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, if it has one."""
        return self._loaded.tokenizer

    def example(self, query: Query) -> Example:
        """The query's tokens and labels. Raises UserError if nothing in it is scored."""
        return query_example(
            query, self._loaded.tokenizer, self._loaded.vocab_size, self._spec.tokenisation.max_length
        )

    def gradients(self, queries: Sequence[Query]) -> QueryGradients:
        """Losses and gradients, in the order of the queries; those of several are weighted sums over members."""
        members = [(row, *member) for row, query in enumerate(queries) for member in query.members]
        found = self.of_examples(
            [self.example(query) for _, _, query in members],
            [row for row, _, _ in members],
            [weight for _, weight, _ in members],
        )
        losses, layers = found.losses, found.layers
        for row, query in enumerate(queries):
            if not (np.isfinite(losses[row]) and all(torch.isfinite(layer[row]).all() for layer in layers)):
                raise UserError(f"the loss or gradient of query {query.query_id!r} is not finite under this model")
        return found

    def of_examples(
        self, examples: Sequence[Example], rows: Sequence[int], weights: Sequence[float]
    ) -> QueryGradients:
        """Weighted sums of losses and gradients, of each example into its row; rows are numbered from 0."""
        lengths = [len(example.input_ids) for example in examples]
        losses = np.zeros(max(rows) + 1, dtype=np.float32)
        layers = [torch.zeros(len(losses), layer.dim) for layer in self._spec.layers]
        for indices in token_budget_batches(lengths, max(_QUERY_TOKENS_PER_BATCH, max(lengths))):
            batch_losses, gradients = self._extractor.gradients(collate(examples, indices))
            into, times = (np.array([of[i] for i in indices]) for of in (rows, weights))
            np.add.at(losses, into, (batch_losses * times).astype(np.float32))
            for layer, gradient in zip(layers, gradients, strict=True):
                weighted = gradient * torch.from_numpy(times).to(gradient)[:, None]
                layer.index_add_(0, torch.from_numpy(into), weighted.float())
        return QueryGradients(losses, layers)


class PartReader:
    """The rows of one part of a generation, asked with the part's own checkpoint, whitening and curvature.

    Args:
        store: the tables.
        generation: the generation to read.
        part: the part of it.
    """

    def __init__(self, store: Store, generation: Generation, part: Part) -> None:
        self._store, self._generation, self.part = store, generation, part
        self.spec = part.index_spec
        self.layout = CodeLayout(self.spec.layers, self.spec.code)
        self._is_alone = len(generation.leaders) == 1
        self._encoders: dict[ModelConfig, QueryEncoder] = {}
        self._own: dict[tuple[tuple[int, ...] | None, str | None], np.ndarray] = {}
        self._resident = Resident()

    def encoder(self, model: ModelInput = None) -> QueryEncoder:
        """The encoder for the part's checkpoint, kept between calls so that the model loads once."""
        if isinstance(model, LoadedModel):
            return self._new_encoder(model)
        config = model if isinstance(model, ModelConfig) else model_config_of(self.part, model)
        if config not in self._encoders:
            self._encoders[config] = self._new_encoder(load_matching(self.spec, config, self._store.storage))
        return self._encoders[config]

    def _new_encoder(self, loaded: LoadedModel) -> QueryEncoder:
        covariances = self._store.whitening(self.spec.projection.whitening)
        return QueryEncoder(loaded, self.spec, covariances, factored=self.part.factored_query)

    def fold(self, gradients: QueryGradients, terms: Terms = PLAIN) -> FoldedQueries:
        """W_l = H_l^-1 Q_l of the part's curvature, or Q_l in its newer metric; a layer in memory at a time.

        Normalised, and beside other parts, relative to the query's influence on itself.
        """
        power = terms.query_power(self._is_alone)
        folded = self.plain_fold(gradients)
        return relative_to_own(folded, gradients.layers, power) if power else folded

    def plain_fold(self, gradients: QueryGradients) -> FoldedQueries:
        """W_l alone."""
        return fold_queries(gradients.layers, self._folds())

    def scale(self, gradients: QueryGradients, terms: Terms = PLAIN) -> torch.Tensor:
        """(Q,) float64, what `fold` multiplies W_l of each query by."""
        power = terms.query_power(self._is_alone)
        if not power:
            return torch.ones(len(gradients.losses), dtype=torch.float64)
        return own_scale(own_influence(self.plain_fold(gradients), gradients.layers), power)

    def translated(self, folded: FoldedQueries, leader: IndexSpec) -> FoldedQueries:
        """Queries that are folded for rows of another spec, for the part's own rows, which follow those."""
        layers = self._translations(leader)
        return folded if layers is None else fold_queries(folded.weights, layers)

    def _translations(self, leader: IndexSpec) -> Iterator[LayerMetric] | None:
        if self._resident.translations is not None:
            return iter(self._resident.translations)
        newer = self._store.whitening(leader.projection.whitening)
        older = self._store.whitening(self.spec.projection.whitening)
        if newer is None or older is None or leader.projection == self.spec.projection:
            return None
        return (translation(newer, older, number) for number in range(len(self.spec.layers)))

    def _folds(self) -> Iterator[Fold]:
        if self._resident.folds is not None:
            return iter(self._resident.folds)
        if self.part.curvature_kind != "none":
            return (fitted for _, fitted in self._store.curvature_layers(self._generation, self.part))
        frozen = self._store.whitening(self.spec.projection.whitening)
        newer = self._store.whitening(self.part.metric)
        return metric_folds(frozen, newer, self.spec.layers)

    def keep_resident(self, limit: int) -> int:
        """Keep codes, and what queries are folded with, in memory from now on, as far as they fit; their bytes."""
        self._resident, codes, size = Resident(), None, 0
        if self.part.rows * self.layout.bytes_per_example <= limit:
            blocks, size = blocks_within(self.blocks(extra=(ROW_ADDRESS,)), limit)
            if blocks is not None:
                tables = Tables(self._store.uri, self._store.storage)
                codes = ResidentCodes(tables, self._generation.factors_version, self._own_fragments(), blocks)
        if self.part.follows is None:
            folds, more = layers_within(self._folds(), limit - size)
            self._resident = Resident(codes, folds, None, size + more)
        else:
            translations, more = layers_within(self._translations(self._leader().spec) or iter(()), limit - size)
            self._resident = Resident(codes, None, translations or None, size + more)
        return size + more

    @property
    def is_resident(self) -> bool:
        """Whether the codes are in memory."""
        return self._resident.codes is not None

    def take_over(self, former: "PartReader") -> None:
        """Use the encoders, and so the loaded models, of a reader of the same rows' spec."""
        if (former.spec, former.part.factored_query) == (self.spec, self.part.factored_query):
            self._encoders.update(former._encoders)

    def fragments(self) -> list[int]:
        """Fragments of the table that hold the part's rows: the units in which workers share a scan."""
        return self.part.chosen(self._store.fragment_ids(self._generation.factors_version))

    def blocks(
        self,
        fragments: Sequence[int] | None = None,
        memory_gb: float = _MEMORY_GB,
        where: str | None = None,
        extra: Sequence[str] = (),
    ) -> Iterator[Block]:
        """Stream the part's codes, or some fragments of them, in one order; `extra` columns with them."""
        if fragments is None and self._resident.codes is not None:
            return self._resident.codes.blocks(where, extra)
        if fragments is None:
            fragments = self._own_fragments()
        rows = block_rows(self.layout, memory_gb)
        return self._store.scan(self._generation.factors_version, rows, fragments, where, extra)

    def described(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Descriptive columns of the rows, in the order of `blocks`."""
        return self._store.metadata(self._generation.factors_version, columns, self._own_fragments(), where)

    def _own_fragments(self) -> list[int] | None:
        """None where all are."""
        return None if self.part.fragments is None else self.fragments()

    def self_influence(
        self, fragments: Sequence[int] | None = None, memory_gb: float = _MEMORY_GB, where: str | None = None
    ) -> np.ndarray:
        """s(x, x) of rows in the order of `blocks`, float32 (rows,); kept between calls, a float per row."""
        key = (None if fragments is None else tuple(fragments), where)
        if key not in self._own:
            self._forget_conditions()
            self._own[key] = self_influences(
                lambda: ((block.codes, block.scales) for block in self.blocks(fragments, memory_gb, where)),
                self.layout,
                self._forms(),
                memory_gb,
            )
        return self._own[key]

    def _forget_conditions(self) -> None:
        """Of all conditions that were ever asked for only some are kept, the newest."""
        oldest = list(dict.fromkeys(where for _, where in self._own))[: -_CONDITIONS_KEPT + 1 or None]
        self._own = {key: own for key, own in self._own.items() if key[1] not in oldest}

    def _forms(self) -> Iterator[LayerForm]:
        if self.part.follows is None:
            return (layer_form(folds) for folds in self._folds())
        leader = self._leader()
        translations = self._translations(leader.spec)
        if translations is None:
            return (layer_form(folds) for folds in leader._folds())
        return (layer_form(folds, back) for folds, back in zip(leader._folds(), translations, strict=True))

    def _leader(self) -> "PartReader":
        (followed,) = (part for part in self._generation.leaders if part.spec == self.part.follows)
        return PartReader(self._store, self._generation, followed)

    def scored(
        self,
        folded: FoldedQueries,
        fragments: Sequence[int] | None = None,
        memory_gb: float = _MEMORY_GB,
        terms: Terms = PLAIN,
        extra: Sequence[str] = (),
    ) -> Iterator[tuple[Block, np.ndarray]]:
        """Blocks of the part's rows with their float32 scores (Q, B)."""
        for block, times_B in self._weighted(fragments, memory_gb, terms, extra):
            scores_QB = score_rows(block.codes, block.scales, self.layout, folded).numpy()
            yield block, scores_QB if times_B is None else scores_QB * times_B

    def _weighted(
        self, fragments: Sequence[int] | None, memory_gb: float, terms: Terms, extra: Sequence[str] = ()
    ) -> Iterator[tuple[Block, np.ndarray | None]]:
        """Blocks of the part's rows, and what their scores are multiplied by, float32 (B,); None for nothing."""
        own, start = None, 0
        if terms.normalise != "none":
            own = self.self_influence(fragments, memory_gb, terms.where)
        for block in self.blocks(fragments, memory_gb, terms.where, extra):
            stop = start + len(block.example_ids)
            yield block, None if own is None else inverse_root(own[start:stop])
            start = stop

    def sought(self, folded: FoldedQueries, memory_gb: float = _MEMORY_GB) -> Sought:
        """Folded queries made ready to look for their strongest rows, here or in several places alike."""
        if not is_worth_a_look(self.layout, self.part.rows):
            return Sought(folded)
        blocks = self.blocks(memory_gb=memory_gb)
        return sought(self.layout, folded, ((block.codes, block.scales) for block in blocks))

    def top_k(
        self,
        queries: Sought,
        k: int,
        fragments: Sequence[int] | None = None,
        memory_gb: float = _MEMORY_GB,
        terms: Terms = PLAIN,
    ) -> list[TopK]:
        """Top-k of queries over the whole part or some fragments of it (`search.Search`)."""
        search = Search(self.layout, queries, k)
        for block, times_B in self._weighted(fragments, memory_gb, terms):
            search.update(block.codes, block.scales, block.example_ids, times_B)
        return search.best


class Index:
    """An index opened for reading; every call sees one whole generation.

    Scores are loss per step, or, of a generation with parts at several checkpoints, that over the query's own
    influence at the checkpoint of the row.

    Args:
        store: the tables.
        generation: the generation to read; the newest if None.
    """

    def __init__(self, store: Store, generation: Generation | None = None) -> None:
        self.store = store
        self.generation = generation or store.latest()
        self.parts = [PartReader(store, self.generation, part) for part in self.generation.parts]

    @property
    def leaders(self) -> list[PartReader]:
        """The parts that are asked at their own checkpoint, newest last."""
        return [part for part in self.parts if part.part.follows is None]

    @property
    def resident_rows(self) -> int:
        """Rows whose codes are in memory."""
        return sum(part.part.rows for part in self.parts if part.is_resident)

    def generations(self) -> list[Generation]:
        """All published generations, newest last."""
        return self.store.generations()

    def scores(
        self,
        queries: Sequence[QueryInput],
        model: ModelInput = None,
        *,
        where: str | None = None,
        normalise: Normalisation = "none",
    ) -> tuple[list[str], np.ndarray]:
        """Ids of all rows, and scores (Q, N) float32; larger = proponent.

        Args:
            queries: strings, dicts with the fields of a queries file, or `Query` objects.
            model: a checkpoint folder or a loaded model, if the newest checkpoint is no longer where the index was
                built from.
            where: SQL condition on the descriptive columns of `factors`; only rows that meet it are scored.
            normalise: see `Terms`.

        Raises:
            UserError: the model is not the index's checkpoint, a query has nothing to score, or no row is meant.
        """
        terms = self.terms(where, normalise)
        ids: list[str] = []
        found = []
        for part, folded in zip(self.parts, self.fold(self.encode(queries, model), terms), strict=True):
            for block, scores_QB in part.scored(folded, terms=terms):
                ids.extend(block.example_ids)
                found.append(scores_QB)
        return ids, np.concatenate(found, axis=1)

    def top_k(
        self,
        queries: Sequence[QueryInput],
        k: int,
        model: ModelInput = None,
        *,
        where: str | None = None,
        normalise: Normalisation = "none",
    ) -> list[TopK]:
        """Per query the k strongest proponents and opponents. Memory does not grow with the index.

        Unless normalised: then a float per row is kept. Arguments are those of `scores`.
        """
        terms = self.terms(where, normalise)
        return self.top_k_folded(self.fold(self.encode(queries, model), terms), k, terms)

    def totals(
        self,
        queries: Sequence[QueryInput],
        by: str = "uri",
        model: ModelInput = None,
        *,
        where: str | None = None,
        normalise: Normalisation = "none",
    ) -> pa.Table:
        """Sums of scores by a column of `factors`; see `totals.totals`."""
        return totals.totals(self, queries, by, model, self.terms(where, normalise))

    def select(
        self,
        queries: Sequence[QueryInput] | None,
        fraction: float,
        model: ModelInput = None,
        *,
        bottom: bool = False,
        where: str | None = None,
        normalise: Normalisation = "none",
    ) -> Iterator[pa.RecordBatch]:
        """The part of the corpus with the highest or lowest mean scores; see `selection.select`."""
        terms = self.terms(where, normalise)
        return selection.select(self, queries, fraction, model, terms, bottom=bottom)

    def self_influence(self, where: str | None = None) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids and s(x, x) of the rows, float32, block by block; compare them within a checkpoint only."""
        self.terms(where)
        for part in self.parts:
            yield from selection.with_ids(part, part.self_influence(where=where), where)

    def token_scores(
        self, query: QueryInput, example_ids: Sequence[str], model: ModelInput = None
    ) -> tuple[list[str], np.ndarray]:
        """The query's tokens, and what each adds to the scores of some rows (T, rows)."""
        return contributions.token_scores(self, query, example_ids, model)

    def layer_scores(
        self,
        query: QueryInput,
        example_ids: Sequence[str],
        groups: str | None = None,
        model: ModelInput = None,
    ) -> tuple[list[str], np.ndarray]:
        """Names of layers or groups of layers, and what each adds to the scores of some rows (L, rows)."""
        return contributions.layer_scores(self, query, example_ids, groups, model)

    def terms(self, where: str | None = None, normalise: str = "none") -> Terms:
        """Terms, checked against the rows of the generation. Raises UserError as `make_terms`."""
        return make_terms(self.store, self.generation.factors_version, where, normalise)

    def encode(self, queries: Sequence[QueryInput], model: ModelInput = None) -> list[QueryGradients]:
        """Gradients of the queries under every checkpoint that is asked."""
        parsed = parsed_queries(queries)
        return [encoder.gradients(parsed) for encoder in self.encoders(model)]

    def encoders(self, model: ModelInput = None) -> list[QueryEncoder]:
        """The encoders of all checkpoints that are asked, newest last."""
        return [*(part.encoder() for part in self.leaders[:-1]), self.encoder(model)]

    def encoder(self, model: ModelInput = None) -> QueryEncoder:
        """The encoder for the newest checkpoint."""
        return self.parts[-1].encoder(model)

    def fold(self, gradients: Sequence[QueryGradients], terms: Terms = PLAIN) -> list[FoldedQueries]:
        """The queries folded for every part."""
        return self.for_parts(
            [part.fold(found, terms) for part, found in zip(self.leaders, gradients, strict=True)]
        )

    def for_parts(self, folded: Sequence[FoldedQueries]) -> list[FoldedQueries]:
        """What is folded for the rows of every checkpoint that is asked, for those that follow them too."""
        led = {part.part.spec: (part, found) for part, found in zip(self.leaders, folded, strict=True)}
        spread = []
        for part in self.parts:
            leader, queries = led[part.part.follows or part.part.spec]
            spread.append(queries if part is leader else part.translated(queries, leader.spec))
        return spread

    def sought(self, folded: Sequence[FoldedQueries], memory_gb: float = _MEMORY_GB) -> list[Sought]:
        """Folded queries made ready for a search of every part."""
        return [part.sought(queries, memory_gb) for part, queries in zip(self.parts, folded, strict=True)]

    def top_k_folded(self, folded: Sequence[FoldedQueries], k: int, terms: Terms = PLAIN) -> list[TopK]:
        """Top-k of folded queries over all parts."""
        found = [
            part.top_k(asked, k, terms=terms) for part, asked in zip(self.parts, self.sought(folded), strict=True)
        ]
        best = found[0]
        for others in found[1:]:
            for kept, other in zip(best, others, strict=True):
                kept.merge(other)
        return best


def open_index(uri: str, storage: StorageConfig | Mapping[str, Any] | None = None) -> Index:
    """Open the newest generation of an index at a local folder or an object-store URI.

    Raises:
        UserError: there is no index, or it has no published generation.
    """
    section = storage if isinstance(storage, StorageConfig) else parse_storage(dict(storage or {}))
    return Index(Store(uri, section))


def model_config_of(part: Part, path: str | None = None) -> ModelConfig:
    """Where a part's checkpoint was, or that `path` holds it now."""
    moved = path is not None and Path(path).exists()
    return ModelConfig(path=path or part.model_path, revision=None if moved else part.model_revision)


def load_matching(spec: IndexSpec, config: ModelConfig, storage: StorageConfig) -> LoadedModel:
    """Load the checkpoint of a spec, in the dtype of the spec.

    Raises:
        UserError: the checkpoint or tokenizer there is another one.
    """
    loaded = load_model(config.model_copy(update={"dtype": spec.model_dtype}), storage)
    check_same_checkpoint(config, storage, loaded, spec)
    return loaded
