"""Opening an index and asking it: query -> dense gradient -> folded with H^-1 -> scan -> scores or top-k.

Needs neither Ray nor Prefect. Shapes: Q queries, N rows, L layers, D = d1 d2.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorif_core.batches import collate, token_budget_batches
from lorif_core.config import ModelConfig, StorageConfig, parse_storage
from lorif_core.curvature import identity_curvature
from lorif_core.errors import UserError
from lorif_core.extract import Extractor
from lorif_core.factors import CodeLayout
from lorif_core.generation import Generation, Part
from lorif_core.heaps import Heaps
from lorif_core.metric import layer_metric, translation
from lorif_core.model import LoadedModel, check_same_checkpoint, load_model
from lorif_core.queries import Query, as_query, query_example
from lorif_core.scoring import FoldedQueries, Folds, fold_queries, relative_to_own, score_rows
from lorif_core.spec import CodeSpec, IndexSpec
from lorif_core.store import Block, Store, block_rows
from lorif_core.tokenise import Example
from lorif_core.topk import TopK
from lorif_core.whitening import Covariances

_DENSE = CodeSpec(kind="dense", dtype="float32")
_QUERY_TOKENS_PER_BATCH = 4096
_MEMORY_GB = 1.0  # of a notebook or `lorif query`; builds and batches have compute.memory_gb

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

    def example(self, query: Query) -> Example:
        """The query's tokens and labels. Raises UserError if nothing in it is scored."""
        return query_example(
            query, self._loaded.tokenizer, self._loaded.vocab_size, self._spec.tokenisation.max_length
        )

    def gradients(self, queries: Sequence[Query]) -> QueryGradients:
        """Losses and gradients, in the order of the queries."""
        examples = [self.example(query) for query in queries]
        lengths = [len(example.input_ids) for example in examples]
        losses = np.zeros(len(examples), dtype=np.float32)
        layers = [torch.zeros(len(examples), layer.dim) for layer in self._spec.layers]
        for indices in token_budget_batches(lengths, max(_QUERY_TOKENS_PER_BATCH, max(lengths))):
            batch_losses, gradients = self._extractor.gradients(collate(examples, indices))
            losses[indices] = batch_losses
            for layer, gradient in zip(layers, gradients, strict=True):
                layer[indices] = gradient
        for row, query in enumerate(queries):
            if not (np.isfinite(losses[row]) and all(torch.isfinite(layer[row]).all() for layer in layers)):
                raise UserError(f"the loss or gradient of query {query.query_id!r} is not finite under this model")
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

    def fold(self, gradients: QueryGradients) -> FoldedQueries:
        """W_l = H_l^-1 Q_l of the part's curvature, or Q_l in its newer metric; a layer in memory at a time.

        Beside other parts, relative to the query's influence on itself, so that their scores compare.
        """
        folded = fold_queries(gradients.layers, self._folds())
        return folded if self._is_alone else relative_to_own(folded, gradients.layers)

    def translated(self, folded: FoldedQueries, leader: IndexSpec) -> FoldedQueries:
        """Queries that are folded for rows of another spec, for the part's own rows, which follow those."""
        newer = self._store.whitening(leader.projection.whitening)
        older = self._store.whitening(self.spec.projection.whitening)
        if newer is None or older is None or leader.projection == self.spec.projection:
            return folded
        layers = (translation(newer, older, number) for number in range(len(self.spec.layers)))
        return fold_queries(folded.weights, layers)

    def _folds(self) -> Iterator[Folds]:
        if self.part.curvature_kind != "none":
            return (fitted for _, fitted in self._store.curvature_layers(self._generation, self.part))
        frozen = self._store.whitening(self.spec.projection.whitening)
        newer = self._store.whitening(self.part.metric)
        if frozen is None or newer is None:
            return (identity_curvature(layer.dim) for layer in self.spec.layers)
        return (layer_metric(frozen, newer, number) for number in range(len(self.spec.layers)))

    def fragments(self) -> list[int]:
        """Fragments of the table that hold the part's rows: the units in which workers share a scan."""
        return self.part.chosen(self._store.fragment_ids(self._generation.factors_version))

    def blocks(self, fragments: Sequence[int] | None = None, memory_gb: float = _MEMORY_GB) -> Iterator[Block]:
        """Stream the part's codes, or some fragments of them."""
        if fragments is None and self.part.fragments is not None:
            fragments = self.fragments()
        return self._store.scan(self._generation.factors_version, block_rows(self.layout, memory_gb), fragments)

    def scored(
        self, folded: FoldedQueries, fragments: Sequence[int] | None = None, memory_gb: float = _MEMORY_GB
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids and float32 scores (Q, B) of the part's rows, block by block."""
        for block in self.blocks(fragments, memory_gb):
            yield block.example_ids, score_rows(block.codes, block.scales, self.layout, folded).numpy()

    def top_k(
        self,
        folded: FoldedQueries,
        k: int,
        fragments: Sequence[int] | None = None,
        memory_gb: float = _MEMORY_GB,
    ) -> list[TopK]:
        """Top-k of folded queries over the whole part or some fragments of it."""
        best = Heaps(folded.count, k)
        for example_ids, scores_QB in self.scored(folded, fragments, memory_gb):
            best.update(scores_QB, example_ids)
        return best.top


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
    def _leaders(self) -> list[PartReader]:
        return [part for part in self.parts if part.part.follows is None]

    def generations(self) -> list[Generation]:
        """All published generations, newest last."""
        return self.store.generations()

    def scores(self, queries: Sequence[QueryInput], model: ModelInput = None) -> tuple[list[str], np.ndarray]:
        """Ids of all rows, and scores (Q, N) float32; larger = proponent.

        Args:
            queries: strings, dicts with the fields of a queries file, or `Query` objects.
            model: a checkpoint folder or a loaded model, if the newest checkpoint is no longer where the index was
                built from.

        Raises:
            UserError: the model is not the index's checkpoint, or a query has nothing to score.
        """
        ids: list[str] = []
        found = []
        for part, folded in zip(self.parts, self.fold(self.encode(queries, model)), strict=True):
            for example_ids, scores_QB in part.scored(folded):
                ids.extend(example_ids)
                found.append(scores_QB)
        return ids, np.concatenate(found, axis=1)

    def top_k(self, queries: Sequence[QueryInput], k: int, model: ModelInput = None) -> list[TopK]:
        """Per query the k strongest proponents and opponents. Memory does not grow with the index."""
        return self.top_k_folded(self.fold(self.encode(queries, model)), k)

    def encode(self, queries: Sequence[QueryInput], model: ModelInput = None) -> list[QueryGradients]:
        """Gradients of the queries under every checkpoint that is asked."""
        parsed = [
            query if isinstance(query, Query) else as_query(query, position)
            for position, query in enumerate(queries)
        ]
        if not parsed:
            raise UserError("there is no query")
        older = [part.encoder().gradients(parsed) for part in self._leaders[:-1]]
        return [*older, self.encoder(model).gradients(parsed)]

    def encoder(self, model: ModelInput = None) -> QueryEncoder:
        """The encoder for the newest checkpoint."""
        return self.parts[-1].encoder(model)

    def fold(self, gradients: Sequence[QueryGradients]) -> list[FoldedQueries]:
        """The queries folded for every part."""
        led = {
            part.part.spec: (part, part.fold(found)) for part, found in zip(self._leaders, gradients, strict=True)
        }
        folded = []
        for part in self.parts:
            leader, queries = led[part.part.follows or part.part.spec]
            folded.append(queries if part is leader else part.translated(queries, leader.spec))
        return folded

    def top_k_folded(self, folded: Sequence[FoldedQueries], k: int) -> list[TopK]:
        """Top-k of folded queries over all parts."""
        found = [part.top_k(queries, k) for part, queries in zip(self.parts, folded, strict=True)]
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
