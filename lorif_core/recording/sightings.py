"""The rows of a journal by example, and which of them count.

Shapes: W levels and S scales of a row.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lorif_core.recording.combined_codes import JournalRow
from lorif_core.recording.journal import BEFORE_METRIC, Journal, Recording

Place = tuple[int, int]
"""Number of a piece, and the row in it."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A row of the journal: where it is, its step, and why it cannot be stored, if so."""

    place: Place
    step: int
    fault: str | None


@dataclass(slots=True)
class Sightings:
    """All rows that were not undone.

    Attributes:
        pieces: names of the pieces.
        by_key: the rows by the key of their example, in the order of their steps.
        first_step: step of the first row with a code.
        last_step: step of the last one.
        rows: number of those.
        longest: tokens of the longest example that training saw.
    """

    pieces: list[str]
    by_key: dict[bytes, list[Sighting]] = field(default_factory=dict)
    first_step: int = 0
    last_step: int = 0
    rows: int = 0
    longest: int = 0

    def of(self, key: bytes, *, only_last: bool) -> list[Sighting]:
        """The rows that count of an example: the last one that can be stored, or all of those."""
        sightings = self.by_key.get(key, [])
        stored = [sighting for sighting in sightings if sighting.fault is None]
        return (stored or sightings)[-1:] if only_last or not stored else stored

    @property
    def most(self) -> int:
        """The most rows with a code that an example has."""
        return max((sum(row.fault is None for row in rows) for rows in self.by_key.values()), default=0)


def read_sightings(journal: Journal, recording: Recording) -> Sightings:
    """Read what is small of all pieces."""
    found = Sightings(journal.pieces(recording))
    by_key: defaultdict[bytes, list[Sighting]] = defaultdict(list)
    steps_of: list[int] = []
    for number, piece in enumerate(found.pieces):
        table = journal.read_rows(recording, piece, ["key", "step", "fault", "length"])
        steps = table.column("step").to_numpy()
        valid = np.flatnonzero(recording.are_valid(journal.attempt_of(piece), steps))
        keys, faults = table.column("key").to_pylist(), table.column("fault").to_pylist()
        for row in valid.tolist():
            by_key[keys[row]].append(Sighting((number, row), int(steps[row]), faults[row]))
            if faults[row] != BEFORE_METRIC:
                steps_of.append(int(steps[row]))
        found.longest = max(found.longest, pc.max(table.column("length")).as_py() or 0)
    for sightings in by_key.values():
        sightings.sort(key=lambda sighting: sighting.step)
    found.by_key, found.rows = dict(by_key), len(steps_of)
    found.first_step, found.last_step = (min(steps_of), max(steps_of)) if steps_of else (0, 0)
    return found


def read_codes(
    journal: Journal, recording: Recording, pieces: Sequence[str], places: Iterable[Place]
) -> dict[Place, JournalRow]:
    """Loss, codes (W,) and scales (S,) of rows, each piece read once."""
    rows_of: defaultdict[int, list[int]] = defaultdict(list)
    for number, row in places:
        rows_of[number].append(row)
    found: dict[Place, JournalRow] = {}
    for number, rows in rows_of.items():
        table = journal.read_rows(recording, pieces[number], ["loss", "codes", "scales"]).take(pa.array(rows))
        losses = table.column("loss").to_numpy()
        codes, scales = (_matrix(table.column(name)) for name in ("codes", "scales"))
        found.update(((number, row), (losses[i], codes[i], scales[i])) for i, row in enumerate(rows))
    return found


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    flat = array.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(array), array.type.list_size)


def grouped(counts: Sequence[int], limit: int) -> Iterator[range]:
    """Consecutive ranges whose counts add up to at most `limit`, or one of a single count above it."""
    start, size = 0, 0
    for number, count in enumerate(counts):
        if size and size + count > limit:
            yield range(start, number)
            start, size = number, 0
        size += count
    if start < len(counts):
        yield range(start, len(counts))
