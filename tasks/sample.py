"""Work over a sample of shards, shared by all workers."""

from collections.abc import Callable, Sequence
from typing import Any

from lorif_core.errors import LorifError
from lorif_core.lifecycle.calibrate import SampledShard, sample_parts
from tasks.dispatch import Failed, Workers
from tasks.progress import Progress
from tasks.workers.host import Host


def over_sample(
    workers: Workers,
    sample: Sequence[SampledShard],
    call: Callable[[Host, int, Sequence[SampledShard]], Any],
    counts: Callable[[Any], tuple[int, int]],
    title: str,
    activity: str,
) -> list[Any]:
    """Run a call over the parts of a sample; returns the results in the order of the parts.

    Args:
        workers: the workers.
        sample: the shards and how many examples to take of each.
        call: passes a part, with its number, to a worker and returns the reference of its result.
        counts: examples and tokens of a result, for the progress.
        title: title of the progress.
        activity: the work in words, for the message of a failure.

    Raises:
        LorifError: a part failed every attempt.
    """
    parts = list(enumerate(sample_parts(sample)))
    results: dict[int, Any] = {}
    with Progress(title, sum(shard.examples for shard in sample)) as progress:
        for outcome in workers.run(parts, lambda host, part: call(host, *part), in_flight=1):
            if isinstance(outcome, Failed):
                raise LorifError(f"{activity} {len(outcome.item[1])} shards failed: {outcome.cause}")
            results[outcome.item[0]] = outcome.result
            progress.advance(*counts(outcome.result))
    return [results[number] for number, _ in parts]
