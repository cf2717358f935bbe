"""The plan of a build, made and checked before anything is written."""

import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Literal

from lorif_core.config import Config
from lorif_core.corpus.chat_template import corpus_template
from lorif_core.corpus.kept_listings import KeptListings
from lorif_core.corpus.notes import CorpusNotes
from lorif_core.corpus.shards import ListFiles, Listing, check_first_file, list_shards
from lorif_core.corpus.token_boundary import require_offsets
from lorif_core.curvature.randomized_svd import layer_groups
from lorif_core.curvature.woodbury import CurvatureSpec
from lorif_core.errors import UserError
from lorif_core.gradients.byte_budget import code_spec
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.whitening import covariance_bytes
from lorif_core.lifecycle.example_length import ExampleLength, measured_length, with_stored_length
from lorif_core.lifecycle.optimizer_scales import check_optimizer
from lorif_core.lifecycle.tracking import TrackedLayers, has_automatic_sizes, layers_of_model, tracked_layers
from lorif_core.model.checkpoint import locate
from lorif_core.model.layers import coverage
from lorif_core.model.loading import Skeleton, load_skeleton, tokenizer_fingerprint
from lorif_core.spec import (
    Coverage,
    FileTag,
    IndexSpec,
    LayerSpec,
    ProjectionKind,
    ProjectionSpec,
    ShardRef,
    TokenSpec,
)
from lorif_core.tables.inventory import ShardKey
from lorif_core.tables.store import Store

_WHITENED: Mapping[str, ProjectionKind] = {
    "random": "whitened", "folded": "folded-whitened", "folded-adam": "folded-adam-whitened",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """A checked build: the spec of its rows, the shards to index, the curvature to fit.

    Attributes:
        spec: spec of the rows to index.
        shards: shards of the corpus that the table must have.
        choice: a sentence that says which layers are tracked, and why.
        coverage: parameters that the layers cover.
        curvature: settings of the fit.
        damaged: (file, cause) of the files of the corpus that cannot be read.
        notes: files that are no part of the corpus, and files of equal content.
        length: what a sample says about the length of examples, if `max_length: auto` measured it.
        retained: further shards that stay in the table; all others are removed.
        base_version: version of `factors` that has the retained shards.
        calibration_seconds: seconds that the calibration of the whitening took.
    """

    spec: IndexSpec
    shards: tuple[ShardRef, ...]
    choice: str
    coverage: Coverage
    curvature: CurvatureSpec
    damaged: tuple[tuple[str, str], ...] = ()
    notes: CorpusNotes = field(default_factory=CorpusNotes)
    length: ExampleLength | None = None
    retained: frozenset[ShardKey] = frozenset()
    base_version: int | None = None
    calibration_seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Number of records in the shards; with `chunk` a record may become several examples."""
        return sum(shard.rows for shard in self.shards)

    @property
    def expected(self) -> set[ShardKey]:
        """Keys of all shards that the table must have in the end, with their specs."""
        return {(self.spec.hash, shard.key) for shard in self.shards} | self.retained

    @property
    def layout(self) -> CodeLayout:
        """Layout of the codes in a row."""
        return CodeLayout(self.spec.layers, self.spec.code)


def preflight(config: Config) -> None:
    """Check everything that does not need a pass over the corpus: model, layers, ranks, index, and its first file.

    Raises:
        UserError: as `make_plan`.
    """
    skeleton = _checked_skeleton(config)
    store = Store(config.index, config.storage)
    if store.rows.spec() is not None:  # `make_spec` hashes the checkpoint, which a new index does not need yet
        store.check_spec(make_spec(config, skeleton))
    check_first_file(config.corpus, config.storage)


def make_plan(config: Config, on_workers: ListFiles | None = None) -> BuildPlan:
    """Plan a build, and check everything that can be checked without weights. Only listings of files are written.

    Args:
        config: config of the build.
        on_workers: as for `list_shards`.

    Raises:
        UserError: the first problem with the model, layers, ranks, index or corpus, in one sentence.
    """
    skeleton = _checked_skeleton(config)
    listing = list_corpus(config, on_workers=on_workers)
    config = with_stored_length(config)
    length = None
    if config.corpus.max_length == "auto":
        config, length = measured_length(config, skeleton, listing.shards)
    return replace(plan_from_listing(config, skeleton, listing), length=length)


def _checked_skeleton(config: Config) -> Skeleton:
    """The skeleton of the model, which the settings and the state of the optimiser fit."""
    skeleton = load_skeleton(config.model, config.storage)
    layers = tracked_layers(config, skeleton).specs
    check_settings(config, skeleton, layers)
    check_optimizer(config, skeleton, layers)
    return skeleton


def list_corpus(
    config: Config,
    known: Set[FileTag] = frozenset(),
    within: str = "",
    on_workers: ListFiles | None = None,
) -> Listing:
    """List the corpus as `list_shards` does, with the listings of files that the index keeps."""
    kept = KeptListings(config.index, config.storage, config.corpus)
    return list_shards(config.corpus, config.storage, known, within, kept, on_workers)


def plan_from_listing(config: Config, skeleton: Skeleton, listing: Listing) -> BuildPlan:
    """The plan for a loaded skeleton and a listed corpus. Raises UserError as `make_plan`."""
    spec = make_spec(config, skeleton)
    Store(config.index, config.storage).check_spec(spec)
    # with `chunk` a record becomes several examples, whose number is known only when they are indexed
    known_rows = sys.maxsize if config.corpus.chunk else sum(shard.rows for shard in listing.shards)
    check_curvature(config, spec.layers, known_rows)
    settings = curvature_spec(config)
    tracked = tracked_layers(config, skeleton)
    return BuildPlan(
        spec=spec,
        shards=listing.shards,
        choice=tracked.choice.reason,
        coverage=covered(tracked, skeleton),
        curvature=settings,
        damaged=listing.damaged,
        notes=listing.notes,
    )


def make_spec(config: Config, skeleton: Skeleton) -> IndexSpec:
    """The spec of rows at the config's checkpoint, with the whitening that the index stores for it, if any.

    Raises:
        UserError: a layer regex, rank or length does not fit the model.
    """
    config = with_stored_length(config)
    layers = tracked_layers(config, skeleton).specs
    check_settings(config, skeleton, layers)
    corpus = config.corpus
    uses_pair = corpus.tokens is None and corpus.prompt is not None
    uses_text = corpus.tokens is None and corpus.prompt is None and corpus.messages is None
    template = corpus_template(corpus, skeleton.tokenizer)
    spec = IndexSpec(
        checkpoint=locate(config.model, config.storage).fingerprint(),
        model_dtype=skeleton.dtype if config.model.dtype == "auto" else config.model.dtype,
        layers=layers,
        projection=projection_spec(config),
        code=code_spec(config.code, layers),
        tokenisation=TokenSpec(
            tokenizer=tokenizer_fingerprint(skeleton.tokenizer),
            text=corpus.text if uses_text else None,
            prompt="+".join(corpus.prompt_columns) if uses_pair else None,
            completion=corpus.completion if uses_pair else None,
            tokens=corpus.tokens,
            labels=corpus.labels,
            id=corpus.id,
            max_length=corpus.longest,
            chunk=corpus.chunk,
            mask=corpus.mask,
            pair="joined" if uses_pair else None,
            messages=corpus.messages,
            chat=None if template is None else template.to_json(),
        ),
        store_text=corpus.store_text,
    )
    return Store(config.index, config.storage).with_stored_whitening(spec)


def projection_spec(config: Config) -> ProjectionSpec:
    """The projection as a spec, without the names of scales and covariances."""
    section = config.projection
    base: Literal["random", "folded", "folded-adam"] = section.kind
    if config.curvature.kind == "adam":
        base = "folded-adam"
    kind: ProjectionKind = base
    if section.whiten:
        kind = _WHITENED[base]
    examples = section.calibration_examples if section.whiten else None
    return ProjectionSpec(kind, section.factor if base == "random" else 1, section.seed, examples)


def covered(tracked: TrackedLayers, skeleton: Skeleton) -> Coverage:
    """The parameters that the tracked layers cover."""
    return coverage(skeleton.model, tracked.choice.layers, skeleton.uncapturable)


def check_settings(config: Config, skeleton: Skeleton, layers: tuple[LayerSpec, ...]) -> None:
    """Raise UserError for a whitening, a length or a corpus that does not fit model or memory."""
    _check_whitening(config, skeleton, layers)
    _check_length(config, skeleton)
    if config.corpus.tokens is None and skeleton.tokenizer is None:
        raise UserError(
            f"the model {config.model.path} has no tokenizer; save one beside it, or set corpus.tokens to the "
            f"column of token ids"
        )
    if config.corpus.tokens is None and config.corpus.completion is not None:
        pair = (*config.corpus.prompt_columns, config.corpus.completion)
        require_offsets(skeleton.tokenizer, f"a pair of {' and '.join(pair)}")
    if corpus_template(config.corpus, skeleton.tokenizer) is not None:
        require_offsets(skeleton.tokenizer, "a conversation")


def curvature_spec(config: Config) -> CurvatureSpec:
    """The curvature section as settings of a fit; the metric of Adam is in the projection, and needs none."""
    section = config.curvature.model_dump(exclude={"optimizer_state"})
    kind = "none" if section["kind"] == "adam" else section["kind"]
    return CurvatureSpec(**{**section, "kind": kind}, seed=config.projection.seed)


def check_curvature(config: Config, layers: tuple[LayerSpec, ...], rows: int) -> None:
    """Raise UserError for a requested rank that is too large for the data, or a fit too large for the memory.

    A rank that is not set explicitly is reduced to what the data allows.
    """
    layer_groups([layer.dim for layer in layers], rows, curvature_spec(config), config.compute.memory_gb)
    is_requested = config.curvature.kind == "woodbury" and "rank" in config.curvature.model_fields_set
    widest = max(layer.dim for layer in layers)
    if is_requested and config.curvature.rank > min(rows, widest):
        raise UserError(
            f"curvature.rank = {config.curvature.rank} is too large: {rows} examples and at most {widest} "
            f"gradient dimensions per layer allow at most {min(rows, widest)}"
        )


def _check_whitening(config: Config, skeleton: Skeleton, layers: tuple[LayerSpec, ...]) -> None:
    """Raise UserError if sizes that the user has set make covariances too large for the memory of a worker."""
    budget, projection = config.compute.memory_gb * 2**30, config.projection
    if not projection.whiten or has_automatic_sizes(projection) or covariance_bytes(layers) <= budget:
        return
    needed = covariance_bytes(layers) / 2**30
    while max(max(layer.d1, layer.d2) for layer in layers) > 1 and covariance_bytes(layers) > budget:
        if projection.kind == "random":
            projection = projection.model_copy(update={"factor": 2 * projection.factor})
        else:
            side = max(max(layer.d1, layer.d2) for layer in layers)
            projection = projection.model_copy(update={"max_side": side // 2})
        smaller = config.model_copy(update={"projection": projection})
        layers = layers_of_model(smaller, skeleton.model, skeleton.uncapturable).specs
    random = projection.kind == "random"
    advice = (
        f"projection.factor to {projection.factor}" if random else f"projection.max_side to {projection.max_side}"
    )
    raise UserError(
        f"the covariances of the whitening need {needed:.1f} GiB per worker, above compute.memory_gb = "
        f"{config.compute.memory_gb:g}; raise it, or set {advice}"
    )


def _check_length(config: Config, skeleton: Skeleton) -> None:
    limit, longest, batch = skeleton.max_positions, config.corpus.max_length, config.compute.tokens_per_batch
    if longest == "auto":
        return
    if limit is not None and longest > limit:
        raise UserError(f"corpus.max_length = {longest} is above the model's {limit} positions; lower it")
    if batch != "auto" and batch < longest:  # the config does not tell if the length is that of the index
        raise UserError(f"compute.tokens_per_batch ({batch}) must be at least corpus.max_length ({longest})")
