"""Calibration: measure the covariances of projected gradients on a sample that is drawn across all shards."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from lorif_core.config import Config
from lorif_core.corpus.batches import collate, token_budget_batches
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import ShardInputError
from lorif_core.gradients.extract import Calibrator
from lorif_core.gradients.whitening import Covariances
from lorif_core.lifecycle.index_shard import load_for, read_examples
from lorif_core.lifecycle.removal import read_removals
from lorif_core.model.loading import LoadedModel
from lorif_core.spec import IndexSpec, ProjectionSpec, ShardRef
from lorif_core.tables.store import Store

log = logging.getLogger(__name__)

_EXAMPLES = 256  # of `auto`
_ROWS_PER_EXAMPLE = 16
_FEWEST_EXAMPLES = 128


@dataclass(frozen=True, slots=True)
class SampledShard:
    """A shard, and the number of examples to take from its start."""

    shard: ShardRef
    examples: int


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
        self._calibrator = Calibrator(self._loaded, spec.layers, spec.projection)
        if loaded is None:
            self._calibrator.check()
        self._removals = read_removals(Store(config.index, config.storage), spec)

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
        for indices in token_budget_batches(lengths, self._config.compute.tokens_per_batch):
            self._calibrator.add(collate(scored, indices))
        return self._calibrator.covariances
