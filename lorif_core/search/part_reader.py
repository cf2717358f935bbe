"""Read one part of a generation: its codes, and the operators that fold queries for its rows.

Shapes: Q queries, B rows of a block.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from lorif_core.config import ModelConfig
from lorif_core.curvature.metric import LayerMetric, metric_folds, translation
from lorif_core.gradients.codes import CodeLayout
from lorif_core.model.loading import LoadedModel
from lorif_core.search.options import DEFAULT_OPTIONS, SearchOptions, inverse_root
from lorif_core.search.query_encoder import (
    ModelInput,
    QueryEncoder,
    QueryGradients,
    load_matching,
    model_config_of,
)
from lorif_core.search.resident import (
    ROW_ADDRESS,
    LayerFold,
    Resident,
    ResidentCodes,
    blocks_within,
    layers_within,
)
from lorif_core.search.scoring import (
    FoldedQueries,
    fold_queries,
    own_influence,
    own_scale,
    relative_to_own,
    score_rows,
)
from lorif_core.search.self_influence import LayerForm, layer_form, self_influences
from lorif_core.search.source_sums import SourceSums
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import PreparedQueries, Search, is_prefilter_worthwhile, prepare_queries
from lorif_core.search.two_stage import StoredRows, TwoStage, read_two_stage
from lorif_core.spec import IndexSpec
from lorif_core.tables.blocks import Block, scan_rows
from lorif_core.tables.datasets import Tables
from lorif_core.tables.generation import Generation, Part
from lorif_core.tables.store import Store

MEMORY_GB = 1.0  # for notebooks and `lorif query`; builds and batches have compute.memory_gb

_MAX_CACHED_CONDITIONS = 8  # conditions whose self-influences are cached


class PartReader:
    """The rows of one part of a generation, read with the part's own checkpoint, whitening and curvature.

    Args:
        store: the tables.
        generation: the generation to read.
        part: the part of the generation.
    """

    def __init__(self, store: Store, generation: Generation, part: Part) -> None:
        self._store, self._generation, self.part = store, generation, part
        self.spec = part.index_spec
        self.layout = CodeLayout(self.spec.layers, self.spec.code)
        self._has_one_checkpoint = len(generation.own_checkpoint_parts) == 1
        self._encoders: dict[ModelConfig, QueryEncoder] = {}
        self._given: QueryEncoder | None = None  # for a model that was given last
        self._self_influence: dict[tuple[tuple[int, ...] | None, str | None], np.ndarray] = {}
        self._resident = Resident()
        self._two_stage: TwoStage | None = None

    def encoder(self, model: ModelInput = None) -> QueryEncoder:
        """The encoder for the part's checkpoint, cached so that the model loads once."""
        if isinstance(model, LoadedModel):
            if self._given is None or self._given.loaded is not model:
                self._given = self._new_encoder(model)
            return self._given
        config = model if isinstance(model, ModelConfig) else model_config_of(self.part, model)
        if config not in self._encoders:
            self._encoders[config] = self._new_encoder(load_matching(self.spec, config, self._store.storage))
        return self._encoders[config]

    def _new_encoder(self, loaded: LoadedModel) -> QueryEncoder:
        roots = self._store.whitenings.roots(self.spec.projection.whitening)
        scales = self._store.scales.read(self.spec.projection)
        return QueryEncoder(loaded, self.spec, roots, scales, factored=self.part.factored_query)

    def fold(self, gradients: QueryGradients, options: SearchOptions = DEFAULT_OPTIONS) -> FoldedQueries:
        """W_l = H_l^-1 Q_l with the part's curvature, or Q_l in its newer metric; one layer in memory at a time.

        If scores are normalised, or there are several checkpoints, W_l is divided by a power of s(q, q).
        """
        power = options.query_power(self._has_one_checkpoint)
        folded = self.fold_unscaled(gradients)
        return relative_to_own(folded, gradients.layers, power) if power else folded

    def fold_unscaled(self, gradients: QueryGradients) -> FoldedQueries:
        """W_l without any division by s(q, q)."""
        return fold_queries(gradients.layers, self._folds())

    def scale(self, gradients: QueryGradients, options: SearchOptions = DEFAULT_OPTIONS) -> torch.Tensor:
        """(Q,) float64: the factor that `fold` multiplies W_l of each query by."""
        power = options.query_power(self._has_one_checkpoint)
        if not power:
            return torch.ones(len(gradients.losses), dtype=torch.float64)
        return own_scale(own_influence(self.fold_unscaled(gradients), gradients.layers), power)

    def translate(self, folded: FoldedQueries, followed: IndexSpec) -> FoldedQueries:
        """Translate queries folded in the whitening of the spec that this part follows into the part's own."""
        layers = self._translations(followed)
        return folded if layers is None else fold_queries(folded.weights, layers)

    def _translations(self, followed: IndexSpec) -> Iterator[LayerMetric] | None:
        if self._resident.translations is not None:
            return iter(self._resident.translations)
        if followed.projection == self.spec.projection:
            return None
        newer = self._store.whitenings.roots(followed.projection.whitening)
        older = self._store.whitenings.roots(self.spec.projection.whitening)
        if newer is None or older is None:
            return None
        return (translation(newer, older, number) for number in range(len(self.spec.layers)))

    def _folds(self) -> Iterator[LayerFold]:
        if self._resident.folds is not None:
            return iter(self._resident.folds)
        if self.part.curvature_kind != "none":
            return (fitted for _, fitted in self._store.curvatures.layers(self._generation, self.part))
        metric = self._store.whitenings.metric(self.part.metric, self.spec.projection.whitening)
        return metric_folds(metric, self.spec.layers)

    def keep_resident(self, limit: int, *, two_stage: bool = False) -> int:
        """Load codes and fold operators into memory, each if it fits within the limit; return the bytes used.

        With `two_stage` the sketch of a two-stage search is loaded instead of codes.

        Raises:
            UserError: that sketch does not fit.
        """
        self._resident, codes, size = Resident(), None, 0
        if two_stage and self.part.rows:
            size = self.two_stage(limit).bytes
        elif self.part.rows * self.layout.bytes_per_example <= limit:
            blocks, size = blocks_within(self.blocks(extra=(ROW_ADDRESS,)), limit)
            if blocks is not None:
                version, fragments = self._generation.factors_version, self._part_fragments()
                codes = ResidentCodes(self._tables, version, fragments, blocks)
        if self.part.follows is None:
            folds, fold_bytes = layers_within(self._folds(), limit - size)
            self._resident = Resident(codes, folds, None, size + fold_bytes)
        else:
            layers = self._translations(self._followed_part().spec) or iter(())
            translations, fold_bytes = layers_within(layers, limit - size)
            self._resident = Resident(codes, None, translations or None, size + fold_bytes)
        return size + fold_bytes

    def two_stage(self, limit: int | None = None) -> TwoStage:
        """The two-stage search of the part, read once and cached. Raises UserError as `read_two_stage`."""
        if self._two_stage is None:
            version, fragments = self._generation.factors_version, self._part_fragments()
            stored = StoredRows(self.layout, self._tables, version, fragments)
            blocks = self.blocks(extra=(ROW_ADDRESS,))
            self._two_stage = read_two_stage(stored, self.part.rows, blocks, limit)
        return self._two_stage

    @property
    def _tables(self) -> Tables:
        return Tables(self._store.uri, self._store.storage)

    @property
    def is_resident(self) -> bool:
        """Whether the codes are in memory."""
        return self._resident.codes is not None

    def reuse_encoders(self, earlier: "PartReader") -> None:
        """Reuse the encoders, and so the loaded models, of an earlier reader of the same spec."""
        if (earlier.spec, earlier.part.factored_query) == (self.spec, self.part.factored_query):
            self._encoders.update(earlier._encoders)

    @property
    def known_checkpoint(self) -> ModelConfig | None:
        """Where a checkpoint of the part that is in memory was loaded from; None if there is none."""
        return next(iter(self._encoders), None)

    def fragments(self) -> list[int]:
        """Fragments of the table that have the part's rows; workers divide a scan by fragments."""
        return self.part.select_fragments(self._store.rows.fragment_ids(self._generation.factors_version))

    def blocks(
        self,
        fragments: Sequence[int] | None = None,
        memory_gb: float = MEMORY_GB,
        where: str | None = None,
        extra: Sequence[str] = (),
    ) -> Iterator[Block]:
        """Stream the codes of the part, or of some fragments, in a fixed order, with `extra` columns."""
        if fragments is None and self._resident.codes is not None:
            return self._resident.codes.blocks(where, extra)
        if fragments is None:
            fragments = self._part_fragments()
        rows = scan_rows(self.layout, memory_gb)
        return self._store.rows.scan(self._generation.factors_version, rows, fragments, where, extra)

    def metadata(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Descriptive columns of the rows, in the order of `blocks`."""
        return self._store.rows.metadata(self._generation.factors_version, columns, self._part_fragments(), where)

    def _part_fragments(self) -> list[int] | None:
        """Fragments of the part; None if it has all of the table."""
        return None if self.part.fragments is None else self.fragments()

    def self_influence(
        self, fragments: Sequence[int] | None = None, memory_gb: float = MEMORY_GB, where: str | None = None
    ) -> np.ndarray:
        """s(x, x) of rows in the order of `blocks`, float32 (rows,); cached, at a float per row."""
        key = (None if fragments is None else tuple(fragments), where)
        if key not in self._self_influence:
            self._evict_oldest_conditions()
            self._self_influence[key] = self_influences(
                lambda: ((block.codes, block.scales) for block in self.blocks(fragments, memory_gb, where)),
                self.layout,
                self._forms(),
                memory_gb,
            )
        return self._self_influence[key]

    def _evict_oldest_conditions(self) -> None:
        """Bound the cache of self-influences, since a server receives ever new conditions."""
        conditions = list(dict.fromkeys(where for _, where in self._self_influence))
        evicted = conditions[: -_MAX_CACHED_CONDITIONS + 1 or None]
        self._self_influence = {key: own for key, own in self._self_influence.items() if key[1] not in evicted}

    def _forms(self) -> Iterator[LayerForm]:
        if self.part.follows is None:
            return (layer_form(fold) for fold in self._folds())
        followed = self._followed_part()
        translations = self._translations(followed.spec)
        if translations is None:
            return (layer_form(fold) for fold in followed._folds())
        pairs = zip(followed._folds(), translations, strict=True)
        return (layer_form(fold, translation_back) for fold, translation_back in pairs)

    def _followed_part(self) -> "PartReader":
        parts = self._generation.own_checkpoint_parts
        (followed,) = (part for part in parts if part.spec == self.part.follows)
        return PartReader(self._store, self._generation, followed)

    def scored_blocks(
        self,
        folded: FoldedQueries,
        fragments: Sequence[int] | None = None,
        memory_gb: float = MEMORY_GB,
        options: SearchOptions = DEFAULT_OPTIONS,
        extra: Sequence[str] = (),
    ) -> Iterator[tuple[Block, np.ndarray]]:
        """Blocks of the part's rows with their float32 scores (Q, B)."""
        for block, multiplier_B in self._blocks_with_multipliers(fragments, memory_gb, options, extra):
            scores_QB = score_rows(block.codes, block.scales, self.layout, folded).numpy()
            yield block, scores_QB if multiplier_B is None else scores_QB * multiplier_B

    def _blocks_with_multipliers(
        self, fragments: Sequence[int] | None, memory_gb: float, options: SearchOptions, extra: Sequence[str] = ()
    ) -> Iterator[tuple[Block, np.ndarray | None]]:
        """Blocks of the part's rows, and the multipliers of their scores, float32 (B,); None for no multiplier."""
        own, start = None, 0
        if options.normalise != "none":
            own = self.self_influence(fragments, memory_gb, options.condition)
        for block in self.blocks(fragments, memory_gb, options.condition, extra):
            stop = start + len(block.example_ids)
            yield block, None if own is None else inverse_root(own[start:stop])
            start = stop

    def prepare(self, folded: FoldedQueries, memory_gb: float = MEMORY_GB) -> PreparedQueries:
        """Prepare folded queries for a top-k search, so that all workers use the same prefilter and margins."""
        if not is_prefilter_worthwhile(self.layout, self.part.rows, folded.count):
            return PreparedQueries(folded)
        blocks = self.blocks(memory_gb=memory_gb)
        return prepare_queries(self.layout, folded, ((block.codes, block.scales) for block in blocks))

    def top_k(
        self,
        queries: PreparedQueries,
        k: int,
        fragments: Sequence[int] | None = None,
        memory_gb: float = MEMORY_GB,
        options: SearchOptions = DEFAULT_OPTIONS,
        sums: SourceSums | None = None,
    ) -> list[TopK]:
        """Top-k of queries over the whole part or some of its fragments (`top_rows.Search`), and sums if given."""
        search, extra = Search(self.layout, queries, k), () if sums is None else sums.columns
        for block, multiplier_B in self._blocks_with_multipliers(fragments, memory_gb, options, extra):
            scores_QB = search.update(block.codes, block.scales, block.example_ids, multiplier_B)
            if sums is not None:
                sums.add(block, scores_QB)
        return search.best
