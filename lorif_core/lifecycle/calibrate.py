"""Calibration: measure the covariances of projected gradients on a sample that is drawn across all shards.

The sample has parts, and the layers have groups. The sums of each part leave the worker that measured them by
group. Then one worker adds the sums of a group over all parts and computes its roots. So no process has the sums
of all parts, and the roots are computed by all workers.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from lorif_core.config import Config
from lorif_core.corpus.batches import collate
from lorif_core.corpus.tokenise import Example
from lorif_core.curvature.metric import mixed_mean, side_drift, side_metric
from lorif_core.errors import ShardInputError
from lorif_core.gradients.extract import Calibrator
from lorif_core.gradients.roots import SideMatrices, SideSummary, WhitenedSide, whitened_sides, whitening_name
from lorif_core.gradients.symmetric import PackedSum
from lorif_core.gradients.whitening import Covariances, SideKey, covariance_bytes, summed
from lorif_core.lifecycle.index_shard import load_for, read_examples, token_budget
from lorif_core.lifecycle.removal import read_removals
from lorif_core.model.loading import LoadedModel
from lorif_core.spec import IndexSpec, LayerSpec, ProjectionSpec, ShardRef
from lorif_core.tables.store import Store
from lorif_core.tables.whitenings import WhiteningHeader

log = logging.getLogger(__name__)

_EXAMPLES = 256  # of `auto`
_ROWS_PER_EXAMPLE = 16
_FEWEST_EXAMPLES = 128
_PARTS = 8
_GROUP_BYTES = 512 * 2**20  # of the covariances of a group of layers, in float64
_SIBLINGS = 4  # layers of a group at least, so that most of those that share an input are in one
CALIBRATION_TOKENS = 1024
"""Of a batch under `auto`: a sum depends on its batches in the last bits, and its digest names the spec."""


@dataclass(frozen=True, slots=True)
class SampledShard:
    """A shard, and the number of examples to take from its start."""

    shard: ShardRef
    examples: int


SumsBySide = Mapping[SideKey, PackedSum]
"""The sums of a group of layers over a part of a sample."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens and examples of a part of a sample."""

    tokens: int
    examples: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """What the covariances of new data are mixed into.

    Attributes:
        frozen: name of the whitening of the codes.
        base: name of the covariances of the data so far.
        base_tokens: number of their tokens.
        base_examples: number of examples that they were measured on.
        tokens: number of new tokens.
    """

    frozen: str
    base: str
    base_tokens: int
    base_examples: int
    tokens: int


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """A group of layers of a whitening: its sides, and their distances from the whitening of the codes, if any."""

    sides: list[SideSummary]
    distances: list[float]


def sample_size(projection: ProjectionSpec, rows: int) -> int:
    """Number of examples to calibrate a corpus of `rows` rows on.

    `auto` takes enough for the metric, but a small share of a build, unless the corpus is so small that the metric
    would suffer.
    """
    if isinstance(projection.calibration_examples, int):
        return min(projection.calibration_examples, rows)
    return min(rows, max(_FEWEST_EXAMPLES, min(_EXAMPLES, rows // _ROWS_PER_EXAMPLE)))


def calibration_sample(shards: Sequence[ShardRef], examples: int) -> list[SampledShard]:
    """Draw `examples` examples from all shards, in proportion to their rows. Deterministic for a given corpus."""
    total = sum(shard.rows for shard in shards)
    sample, before = [], 0
    for shard in shards:
        after = before + shard.rows
        # counts the integers k with k total / examples in [before, after), so rounding loses no example
        count = -(-after * examples // total) - -(-before * examples // total)
        if count:
            sample.append(SampledShard(shard, min(count, shard.rows)))
        before = after
    return sample


def total_counts(parts: Sequence[Counts]) -> Counts:
    """The tokens and examples of all parts of a sample."""
    return Counts(sum(part.tokens for part in parts), sum(part.examples for part in parts))


def whitening_header(
    spec: IndexSpec, counts: Counts, groups: Sequence[GroupSummary], mixture: Mixture | None
) -> WhiteningHeader:
    """The name of a measured whitening, which follows from its covariances, and what it was measured on."""
    sides = [side for group in groups for side in group.sides]
    if mixture is None:
        name = whitening_name(counts.tokens, counts.examples, sides)
        return WhiteningHeader(name, spec.with_whitening(name).hash, counts.tokens, counts.examples)
    tokens, examples = mixture.base_tokens + mixture.tokens, mixture.base_examples + counts.examples
    return WhiteningHeader(whitening_name(tokens, examples, sides), None, tokens, examples)


def part_count(shards: Sequence[object]) -> int:
    """Number of parts of a sample of shards. It depends on no cluster, so that sums over the parts repeat."""
    return min(_PARTS, len(shards))


def sample_parts(sample: Sequence[SampledShard]) -> list[Sequence[SampledShard]]:
    """A sample in parts for workers."""
    count = part_count(sample)
    return [sample[number::count] for number in range(count)]


def read_sample(sample: Sequence[SampledShard], config: Config, loaded: LoadedModel) -> list[Example]:
    """Read the sampled examples. A shard that cannot be read is skipped here; the indexing step reports it."""
    examples: list[Example] = []
    for item in sample:
        try:
            examples += islice(read_examples(item.shard, config, loaded), item.examples)
        except ShardInputError as error:
            log.warning("the sample skips a shard: %s", error)
    return examples


class ShardCalibrator:
    """Measures covariances on samples of shards with one loaded model.

    Args:
        config: configuration of the build.
        spec: spec of its rows, with or without the whitening.
        loaded: the model, if it is loaded and has passed the self-check with the layers of the spec.

    Raises:
        UserError: the checkpoint or its tokenizer differs from that of the spec, or a layer cannot be captured.
    """

    def __init__(self, config: Config, spec: IndexSpec, loaded: LoadedModel | None = None) -> None:
        self._config = config
        self._loaded = loaded or load_for(spec, config)
        self._budget = token_budget(config, self._loaded, CALIBRATION_TOKENS)
        store = Store(config.index, config.storage)
        scales = store.scales.read(spec.projection)
        self._calibrator = Calibrator(self._loaded, spec.layers, spec.projection, scales)
        if loaded is None:
            self._calibrator.check()
        self._removals = read_removals(store, spec)

    @property
    def loaded(self) -> LoadedModel:
        """The model, which has passed the self-check."""
        return self._loaded

    def covariances(self, sample: Sequence[SampledShard]) -> Covariances:
        """The covariances of a sample, without removed examples and examples that have no scored token."""
        self._calibrator.reset()
        scored = [
            example
            for example in read_sample(sample, self._config, self._loaded)
            if example.scored and not self._removals.has(example.example_id, example.content_hash)
        ]
        lengths = [len(example.input_ids) for example in scored]
        self._budget.run(
            lengths,
            lambda indices: self._calibrator.add(collate(scored, indices)),
            restart=self._calibrator.reset,  # a batch may have added some of its layers when memory ran out
        )
        return self._calibrator.covariances

    def parts(self, sample: Sequence[SampledShard], groups: Sequence[range]) -> list[Counts | SumsBySide]:
        """Number of tokens and examples of a sample, and its sums for each group of layers, to be sent."""
        covariances = self.covariances(sample)
        packed = [covariances.packed(group) for group in groups]
        self._calibrator.reset()
        return [Counts(covariances.tokens, covariances.examples), *packed]


def layer_ranges(layers: Sequence[LayerSpec], count: int) -> list[range]:
    """Groups of successive layers for about `count` workers, each within the memory of a group."""
    bytes_of = [covariance_bytes([layer]) for layer in layers]
    most = max(-(-sum(bytes_of) // _GROUP_BYTES), min(count, len(layers) // _SIBLINGS), 1)
    limit, groups, start, size = sum(bytes_of) / most, list[range](), 0, 0
    for number, own in enumerate(bytes_of):
        if size and size + own / 2 > limit:
            groups.append(range(start, number))
            start, size = number, 0
        size += own
    return [*groups, range(start, len(layers))]


def whiten_group(
    parts: Sequence[SumsBySide], tokens: int, device: torch.device, store: Store, mixture: Mixture | None
) -> tuple[GroupSummary, list[WhitenedSide]]:
    """The sums of a group of layers over all parts of a sample, as covariances with their roots.

    Args:
        parts: the sums of each part, at least one.
        tokens: tokens of all parts.
        device: device that the roots are computed on.
        store: the tables, from which the covariances of a mixture are read.
        mixture: what the covariances are mixed into; None if they stand for themselves.
    """
    means = ((keys, total / tokens) for keys, total in summed(parts, device))
    if mixture is None:
        sides = whitened_sides(means)
        return GroupSummary([side.summary for side in sides], []), sides
    numbers = sorted({layer for layer, _ in parts[0]})
    layers = range(numbers[0], numbers[-1] + 1)
    base = store.whitenings.covariances(mixture.base, layers)
    frozen = store.whitenings.roots(mixture.frozen, layers)
    assert base is not None and frozen is not None
    moved: dict[SideKey, float] = {}

    def metric_of(keys: Sequence[SideKey], root: torch.Tensor) -> torch.Tensor:
        metric = side_metric(frozen, root, *keys[0])
        moved.update(dict.fromkeys(keys, side_drift(metric)))
        return metric

    sides = whitened_sides(_mixed(means, base, frozen, mixture), metric_of)
    summaries = [side.summary for side in sides]
    return GroupSummary(summaries, [moved[side.layer, side.side] for side in summaries]), sides


def _mixed(
    means: Iterable[tuple[Sequence[SideKey], torch.Tensor]],
    base: Covariances,
    frozen: SideMatrices,
    mixture: Mixture,
) -> Iterator[tuple[list[SideKey], torch.Tensor]]:
    """Means of the mixture; sides share one only if they share it in the base and in the whitening, too."""
    for keys, mean in means:
        left = list(keys)
        while left:
            first, former = left[0], base.mean(*left[0])
            same = [
                key
                for key in left
                if torch.equal(base.mean(*key), former)
                and frozen.packed(*key).digest == frozen.packed(*first).digest
            ]
            left = [key for key in left if key not in same]
            yield same, mixed_mean(former.to(mean.device), mixture.base_tokens, mean, mixture.tokens)
