"""Calibration: a sample of the corpus, drawn across all shards, and the covariances of its projected gradients."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from lorif_core.config import Config
from lorif_core.corpus.batches import collate, token_budget_batches
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import ShardInputError
from lorif_core.gradients.extract import Calibrator
from lorif_core.gradients.whitening import Covariances
from lorif_core.lifecycle.index_shard import model_config, read_examples
from lorif_core.lifecycle.removal import removals_of
from lorif_core.model.loading import LoadedModel, check_same_checkpoint, load_model
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tables.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SampledShard:
    """How many examples to take from the start of a shard."""

    shard: ShardRef
    examples: int


def calibration_sample(shards: Sequence[ShardRef], examples: int) -> list[SampledShard]:
    """`examples` examples over all shards, of each its share of the rows; a function of the corpus."""
    total = sum(shard.rows for shard in shards)
    sample, before = [], 0
    for shard in shards:
        after = before + shard.rows
        # the numbers k with k total / examples in [before, after): none is lost to rounding
        count = -(-after * examples // total) - -(-before * examples // total)
        if count:
            sample.append(SampledShard(shard, min(count, shard.rows)))
        before = after
    return sample


def sampled_examples(sample: Sequence[SampledShard], config: Config, loaded: LoadedModel) -> list[Example]:
    """What was sampled; a shard that cannot be read is left out here, and named by what indexes it."""
    examples: list[Example] = []
    for part in sample:
        try:
            examples += islice(read_examples(part.shard, config, loaded), part.examples)
        except ShardInputError as error:
            log.warning("left out of the sample: %s", error)
    return examples


class ShardCalibrator:
    """Runs samples of shards with one loaded model.

    Args:
        config: the build's configuration.
        spec: the spec of its rows, without their whitening.
        device: where the model goes; None picks CUDA where there is one.
    """

    def __init__(self, config: Config, spec: IndexSpec, device: str | None = None) -> None:
        self._config, self._spec = config, spec
        self._loaded = load_model(model_config(config, spec), config.storage, device)
        check_same_checkpoint(config.model, config.storage, self._loaded, spec)

    def covariances(self, sample: Sequence[SampledShard]) -> Covariances:
        """Sums over some sampled shards."""
        calibrator = Calibrator(self._loaded, self._spec.layers, replace(self._spec.projection, kind="random"))
        removals = removals_of(Store(self._config.index, self._config.storage), self._spec)
        scored = [
            example
            for example in sampled_examples(sample, self._config, self._loaded)
            if example.scored and not removals.has(example.example_id, example.content_hash)
        ]
        lengths = [len(example.input_ids) for example in scored]
        for indices in token_budget_batches(lengths, self._config.compute.tokens_per_batch):
            calibrator.add(collate(scored, indices))
        return calibrator.covariances
