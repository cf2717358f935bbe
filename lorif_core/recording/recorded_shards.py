"""The shards of a corpus, with what a training recorded of their examples.

The corpus is read once if its examples fit into a quarter of `compute.memory_gb`. Else later shards are read again
when their rows are stored: which shards are recorded must be known before, and a shard has rows in many pieces of
the journal, which are read once for as many shards as memory allows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lorif_core.config import Config
from lorif_core.corpus.tokenise import Example
from lorif_core.lifecycle.index_shard import Tokenising, read_examples
from lorif_core.lifecycle.removal import Removals
from lorif_core.recording.journal import BEFORE_METRIC
from lorif_core.recording.recorded_examples import reason_against
from lorif_core.recording.sightings import Place, Sighting, Sightings
from lorif_core.recording.training_batch import content_key
from lorif_core.spec import ShardRef
from lorif_core.tables.schema import ShardRows

_SHARE = 0.25  # of `compute.memory_gb`
_OBJECT_BYTES = 1024  # of an example besides its tokens and its text


@dataclass(frozen=True, slots=True)
class RecordedShard:
    """A shard.

    Attributes:
        ref: the shard.
        sightings: the rows of each of its examples that count.
        kept: its examples; None if they must be read again.
    """

    ref: ShardRef
    sightings: list[list[Sighting]]
    kept: list[Example] | None

    @property
    def places(self) -> set[Place]:
        """Where its rows are in the journal."""
        return {row.place for rows in self.sightings for row in rows if row.fault is None}

    @property
    def early(self) -> int:
        """Number of examples that training showed only before the metric was there."""
        return sum(bool(rows) and rows[-1].fault == BEFORE_METRIC for rows in self.sightings)


@dataclass(frozen=True, slots=True)
class SplitShard:
    """The examples of a shard by what becomes of them.

    Attributes:
        recorded: examples with rows in the journal, and these rows.
        early: examples that training showed only before the metric was there.
        skipped: ids of all others, and why they have no row.
    """

    recorded: list[tuple[Example, list[Sighting]]]
    early: list[Example]
    skipped: list[tuple[str, str]]


class CorpusReader:
    """Reads the shards.

    Args:
        config: CONFIG of the index.
        tokenising: how texts become tokens.
    """

    def __init__(self, config: Config, tokenising: Tokenising) -> None:
        self._config, self._tokenising = config, tokenising
        self._free = _SHARE * config.compute.memory_gb * 2**30

    def recorded(self, refs: Iterable[ShardRef], sightings: Sightings, *, only_last: bool) -> list[RecordedShard]:
        """The shards of which some example was seen in training."""
        found = []
        for ref in refs:
            examples = list(read_examples(ref, self._config, self._tokenising))
            keys = [content_key(example.input_ids, example.labels) for example in examples]
            of_examples = [sightings.of(key, only_last=only_last) for key in keys]
            if any(of_examples):
                found.append(RecordedShard(ref, of_examples, self._kept(examples)))
        return found

    def examples(self, shard: RecordedShard) -> list[Example]:
        """The examples of a shard, in the order of the file."""
        if shard.kept is not None:
            return shard.kept
        return list(read_examples(shard.ref, self._config, self._tokenising))

    def _kept(self, examples: list[Example]) -> list[Example] | None:
        """The examples if there is memory for them; once there is not, no later ones are kept."""
        self._free -= sum(
            _OBJECT_BYTES + example.input_ids.nbytes + example.labels.nbytes + 4 * len(example.text or "")
            for example in examples
        )
        return examples if self._free >= 0 else None


def split_shard(shard: RecordedShard, corpus: CorpusReader, removals: Removals) -> SplitShard:
    """See `SplitShard`."""
    split = SplitShard([], [], [])
    for example, seen in zip(corpus.examples(shard), shard.sightings, strict=True):
        reason = reason_against(example, seen, removals)
        if reason is None:
            split.recorded.append((example, seen))
        elif reason == BEFORE_METRIC:
            split.early.append(example)
        else:
            split.skipped.append((example.example_id, reason))
    return split


def in_order(parts: Sequence[ShardRows]) -> list[ShardRows]:
    """The rows of a shard as one part in the order of the file, if there are any."""
    if len(parts) < 2:
        return list(parts)
    examples = [example for part in parts for example in part.examples]
    checkpoints = [checkpoint for part in parts for checkpoint in part.checkpoints or ()]
    order = sorted(range(len(examples)), key=lambda number: examples[number].row)
    losses, codes, scales = (
        np.concatenate([getattr(part, name) for part in parts])[order] for name in ("losses", "codes", "scales")
    )
    return [
        ShardRows([examples[i] for i in order], losses, codes, scales, [checkpoints[i] for i in order])
    ]  # fmt: skip
