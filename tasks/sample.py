"""Work over a sample of shards, shared by all workers."""

from collections.abc import Callable, Sequence
from typing import Any

from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.lifecycle.calibrate import SampledShard
from tasks.cluster import Resources, cluster
from tasks.dispatch import Failed, Workers
from tasks.progress import Progress

_PARTS = 8  # however many workers there are, so that sums, added part after part, repeat


def over_sample(
    config: Config,
    sample: Sequence[SampledShard],
    spawn: Callable[[Resources], Any],
    call: Callable[[Any, Sequence[SampledShard]], Any],
    counts: Callable[[Any], tuple[int, int]],
    title: str,
    doing: str,
) -> list[Any]:
    """Results of the parts of a sample, in the order of the parts.

    Args:
        config: where the work runs.
        sample: of shards.
        spawn: starts an actor.
        call: gives an actor a part and returns the reference of its result.
        counts: examples and tokens of a result, for the progress.
        title: of the progress.
        doing: what is done to shards, for the message of a failure.

    Raises:
        LorifError: a part failed every attempt.
    """
    count = min(_PARTS, len(sample))
    parts = [(number, sample[number::count]) for number in range(count)]
    found: dict[int, Any] = {}
    with (
        cluster(config.compute) as resources,
        Workers(lambda: spawn(resources), min(resources.workers, count)) as workers,
        Progress(title, sum(one.examples for one in sample)) as progress,
    ):
        for outcome in workers.run(parts, lambda actor, part: call(actor, part[1]), in_flight=1):
            if isinstance(outcome, Failed):
                raise LorifError(f"{doing} {len(outcome.item[1])} shards failed: {outcome.cause}")
            found[outcome.item[0]] = outcome.result
            progress.advance(*counts(outcome.result))
    return [found[number] for number in range(count)]
