"""The rows of a journal by example: which of them count, and how several become one.

Shapes: R rows, W levels and S scales of a row, N sightings of an example.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from lorif_core.gradients.codes import CodeLayout, encode
from lorif_core.gradients.extract import to_stored
from lorif_core.recording.journal import Journal, Recording

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
    """All rows that were not undone, by the key of their example, in the order of their steps."""

    pieces: list[str]
    by_key: dict[bytes, list[Sighting]] = field(default_factory=dict)
    first_step: int = 0
    last_step: int = 0
    rows: int = 0

    def of(self, key: bytes, *, only_last: bool) -> list[Sighting]:
        """The rows that count of an example: the last one that can be stored, or all of those."""
        sightings = self.by_key.get(key, [])
        stored = [sighting for sighting in sightings if sighting.fault is None]
        return (stored or sightings)[-1:] if only_last or not stored else stored


def read_sightings(journal: Journal, recording: Recording) -> Sightings:
    """Read what is small of all pieces."""
    found = Sightings(journal.pieces(recording))
    by_key: defaultdict[bytes, list[Sighting]] = defaultdict(list)
    for number, piece in enumerate(found.pieces):
        table = journal.read_rows(recording, piece, ["key", "step", "fault"])
        steps = table.column("step").to_numpy()
        valid = np.flatnonzero(recording.are_valid(journal.attempt_of(piece), steps))
        keys, faults = table.column("key").to_pylist(), table.column("fault").to_pylist()
        for row in valid.tolist():
            by_key[keys[row]].append(Sighting((number, row), int(steps[row]), faults[row]))
            found.rows += 1
    for sightings in by_key.values():
        sightings.sort(key=lambda sighting: sighting.step)
    steps_of = [sighting.step for sightings in by_key.values() for sighting in sightings]
    found.by_key = dict(by_key)
    found.first_step, found.last_step = (min(steps_of), max(steps_of)) if steps_of else (0, 0)
    return found


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """Losses (R,), codes (R, W) as stored and scales (R, S) of some rows."""

    losses: np.ndarray
    codes: np.ndarray
    scales: np.ndarray


def read_codes(
    journal: Journal, recording: Recording, pieces: Sequence[str], places: Iterable[Place]
) -> dict[Place, tuple[float, np.ndarray, np.ndarray]]:
    """Loss, codes (W,) and scales (S,) of rows, each piece read once."""
    rows_of: defaultdict[int, list[int]] = defaultdict(list)
    for number, row in places:
        rows_of[number].append(row)
    found: dict[Place, tuple[float, np.ndarray, np.ndarray]] = {}
    for number, rows in rows_of.items():
        table = journal.read_rows(recording, pieces[number], ["loss", "codes", "scales"]).take(pa.array(rows))
        losses = table.column("loss").to_numpy()
        codes, scales = (_matrix(table.column(name)) for name in ("codes", "scales"))
        found.update(((number, row), (losses[i], codes[i], scales[i])) for i, row in enumerate(rows))
    return found


def one_of_each(
    groups: Sequence[Sequence[tuple[float, np.ndarray, np.ndarray]]], layout: CodeLayout, *, unbiased: bool
) -> StoredCodes:
    """One row for each example: its only one, or the code of the mean of what its rows decode to."""
    losses = np.array([np.mean([loss for loss, _, _ in group]) for group in groups], np.float32)
    codes, scales = (np.stack([group[-1][part] for group in groups]) for part in (1, 2))
    several = [number for number, group in enumerate(groups) if len(group) > 1]
    for number in several:
        stacked = [np.stack([row[part] for row in groups[number]]) for part in (1, 2)]
        mean = _mean(torch.from_numpy(stacked[0]), torch.from_numpy(stacked[1]), layout, unbiased=unbiased)
        codes[number], scales[number] = mean
    return StoredCodes(losses, codes, scales)


def _mean(
    codes_NW: torch.Tensor, scales_NS: torch.Tensor, layout: CodeLayout, *, unbiased: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of the mean over the rows of one example.

    The terms of all rows are as many tokens of one gradient: sum s u v^T / N = A^T E with A = u and E = s v / N.
    """
    levels = torch.zeros(1, layout.width)
    scales = torch.zeros(1, layout.scales)
    for index, slot in enumerate(layout.slots):
        if layout.code.kind == "dense":
            d1, d2 = slot.layer.d1, slot.layer.d2
            E = layout.decode(codes_NW, scales_NS, index).mean(dim=0).view(1, d1, d2)
            A = torch.eye(d1)[None]
        else:
            u, v = layout.factors(codes_NW, slot)
            v = v * scales_NS[:, None, slot.scales] / len(codes_NW)
            A, E = (factor.transpose(1, 2).reshape(1, -1, factor.shape[1]) for factor in (u, v))
        encoded = encode(A.float(), E.float(), layout.code, unbiased=unbiased)
        levels[:, slot.start : slot.stop], scales[:, slot.scales] = encoded.codes, encoded.scales
    return to_stored(levels, layout)[0].numpy(), scales[0].numpy()


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
