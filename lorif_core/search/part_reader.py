"""The rows of a part of a generation as a reader sees them: their codes, and what queries are folded with.

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
from lorif_core.search.options import PLAIN, Terms, inverse_root
from lorif_core.search.query_encoder import (
    ModelInput,
    QueryEncoder,
    QueryGradients,
    load_matching,
    model_config_of,
)
from lorif_core.search.resident import ROW_ADDRESS, Fold, Resident, ResidentCodes, blocks_within, layers_within
from lorif_core.search.scoring import (
    FoldedQueries,
    fold_queries,
    own_influence,
    own_scale,
    relative_to_own,
    score_rows,
)
from lorif_core.search.self_influence import LayerForm, layer_form, self_influences
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import Search, Sought, is_worth_a_look, sought
from lorif_core.search.two_stage import Place, TwoStage, read_two_stage
from lorif_core.spec import IndexSpec
from lorif_core.tables.blocks import Block, scan_rows
from lorif_core.tables.datasets import Tables
from lorif_core.tables.generation import Generation, Part
from lorif_core.tables.store import Store

MEMORY_GB = 1.0  # of a notebook or `lorif query`; builds and batches have compute.memory_gb

_CONDITIONS_KEPT = 8  # whose self-influences are kept


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
        self._two_stage: TwoStage | None = None

    def encoder(self, model: ModelInput = None) -> QueryEncoder:
        """The encoder for the part's checkpoint, kept between calls so that the model loads once."""
        if isinstance(model, LoadedModel):
            return self._new_encoder(model)
        config = model if isinstance(model, ModelConfig) else model_config_of(self.part, model)
        if config not in self._encoders:
            self._encoders[config] = self._new_encoder(load_matching(self.spec, config, self._store.storage))
        return self._encoders[config]

    def _new_encoder(self, loaded: LoadedModel) -> QueryEncoder:
        covariances = self._store.covariances.read(self.spec.projection.whitening)
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
        newer = self._store.covariances.read(leader.projection.whitening)
        older = self._store.covariances.read(self.spec.projection.whitening)
        if newer is None or older is None or leader.projection == self.spec.projection:
            return None
        return (translation(newer, older, number) for number in range(len(self.spec.layers)))

    def _folds(self) -> Iterator[Fold]:
        if self._resident.folds is not None:
            return iter(self._resident.folds)
        if self.part.curvature_kind != "none":
            return (fitted for _, fitted in self._store.curvatures.layers(self._generation, self.part))
        frozen = self._store.covariances.read(self.spec.projection.whitening)
        newer = self._store.covariances.read(self.part.metric)
        return metric_folds(frozen, newer, self.spec.layers)

    def keep_resident(self, limit: int, *, two_stage: bool = False) -> int:
        """Keep codes, and what queries are folded with, in memory from now on, as far as they fit; their bytes.

        In place of codes `two_stage` keeps what such a search begins with. Raises UserError if that does not fit.
        """
        self._resident, codes, size = Resident(), None, 0
        if two_stage:
            size = self.two_stage(limit).bytes
        elif self.part.rows * self.layout.bytes_per_example <= limit:
            blocks, size = blocks_within(self.blocks(extra=(ROW_ADDRESS,)), limit)
            if blocks is not None:
                version, fragments = self._generation.factors_version, self._own_fragments()
                codes = ResidentCodes(self._tables, version, fragments, blocks)
        if self.part.follows is None:
            folds, more = layers_within(self._folds(), limit - size)
            self._resident = Resident(codes, folds, None, size + more)
        else:
            translations, more = layers_within(self._translations(self._leader().spec) or iter(()), limit - size)
            self._resident = Resident(codes, None, translations or None, size + more)
        return size + more

    def two_stage(self, limit: int | None = None) -> TwoStage:
        """What such a search begins with: read once, and kept. Raises UserError as `read_two_stage`."""
        if self._two_stage is None:
            version, fragments = self._generation.factors_version, self._own_fragments()
            place = Place(self.layout, self._tables, version, fragments)
            blocks = self.blocks(extra=(ROW_ADDRESS,))
            self._two_stage = read_two_stage(place, self.part.rows, blocks, limit)
        return self._two_stage

    @property
    def _tables(self) -> Tables:
        return Tables(self._store.uri, self._store.storage)

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
        return self.part.chosen(self._store.rows.fragment_ids(self._generation.factors_version))

    def blocks(
        self,
        fragments: Sequence[int] | None = None,
        memory_gb: float = MEMORY_GB,
        where: str | None = None,
        extra: Sequence[str] = (),
    ) -> Iterator[Block]:
        """Stream the part's codes, or some fragments of them, in one order; `extra` columns with them."""
        if fragments is None and self._resident.codes is not None:
            return self._resident.codes.blocks(where, extra)
        if fragments is None:
            fragments = self._own_fragments()
        rows = scan_rows(self.layout, memory_gb)
        return self._store.rows.scan(self._generation.factors_version, rows, fragments, where, extra)

    def described(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Descriptive columns of the rows, in the order of `blocks`."""
        return self._store.rows.metadata(self._generation.factors_version, columns, self._own_fragments(), where)

    def _own_fragments(self) -> list[int] | None:
        """None where all are."""
        return None if self.part.fragments is None else self.fragments()

    def self_influence(
        self, fragments: Sequence[int] | None = None, memory_gb: float = MEMORY_GB, where: str | None = None
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
        memory_gb: float = MEMORY_GB,
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

    def sought(self, folded: FoldedQueries, memory_gb: float = MEMORY_GB) -> Sought:
        """Folded queries made ready to look for their strongest rows, here or in several places alike."""
        if not is_worth_a_look(self.layout, self.part.rows, folded.count):
            return Sought(folded)
        blocks = self.blocks(memory_gb=memory_gb)
        return sought(self.layout, folded, ((block.codes, block.scales) for block in blocks))

    def top_k(
        self,
        queries: Sought,
        k: int,
        fragments: Sequence[int] | None = None,
        memory_gb: float = MEMORY_GB,
        terms: Terms = PLAIN,
    ) -> list[TopK]:
        """Top-k of queries over the whole part or some fragments of it (`search.Search`)."""
        search = Search(self.layout, queries, k)
        for block, times_B in self._weighted(fragments, memory_gb, terms):
            search.update(block.codes, block.scales, block.example_ids, times_B)
        return search.best
