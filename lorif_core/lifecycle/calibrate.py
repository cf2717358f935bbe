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
from lorif_core.lifecycle.index_shard import model_config, read_examples
from lorif_core.lifecycle.removal import read_removals
from lorif_core.model.loading import LoadedModel, check_same_checkpoint, load_model
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tables.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SampledShard:
    """A shard, and the number of examples to take from its start."""

    shard: ShardRef
    examples: int


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
        spec: spec of its rows, without the whitening.
        device: device of the model; None selects CUDA if it is available.

    Raises:
        UserError: the checkpoint or its tokenizer differs from that of the spec, or a layer cannot be captured.
    """

    def __init__(self, config: Config, spec: IndexSpec, device: str | None = None) -> None:
        self._config, self._spec = config, spec
        self._loaded = load_model(model_config(config, spec), config.storage, device)
        check_same_checkpoint(config.model, config.storage, self._loaded, spec)
        self._calibrator().check()

    def covariances(self, sample: Sequence[SampledShard]) -> Covariances:
        """The covariances of a sample, without removed examples and examples that have no scored token."""
        calibrator = self._calibrator()
        removals = read_removals(Store(self._config.index, self._config.storage), self._spec)
        scored = [
            example
            for example in read_sample(sample, self._config, self._loaded)
            if example.scored and not removals.has(example.example_id, example.content_hash)
        ]
        lengths = [len(example.input_ids) for example in scored]
        for indices in token_budget_batches(lengths, self._config.compute.tokens_per_batch):
            calibrator.add(collate(scored, indices))
        return calibrator.covariances

    def _calibrator(self) -> Calibrator:
        return Calibrator(self._loaded, self._spec.layers, self._spec.projection)
