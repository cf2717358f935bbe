"""The journal of a recording: pieces of rows in the order in which they arose, in `_lorif/recording/` of an index.

`current.json` says what is recorded. An attempt begins whenever training begins or is restored. It voids the rows
of earlier attempts whose step is above the one that it goes on from.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64_hexdigest

from lorif_core.config import StorageConfig
from lorif_core.errors import LorifError
from lorif_core.gradients.whitening import Covariances
from lorif_core.recording.metric import (
    RecordedScales,
    RecordedWhitening,
    moments_bytes,
    moments_of,
    scales_bytes,
    scales_from,
    whitening_bytes,
    whitening_of,
)
from lorif_core.recording.settings import Sightings
from lorif_core.storage.objects import Objects, parse_object
from lorif_core.tables.checksums import damaged
from lorif_core.tables.file_digests import sealed, unsealed

BEFORE_METRIC = "training showed it only before the metric was there"
"""Fault of rows that only note that training saw an example, before the whitening or in the warm-up."""
_FOLDER = "recording"
_CURRENT = f"{_FOLDER}/current.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Recording:
    """What is recorded.

    Attributes:
        run: 16 hex digits that identify the training.
        config: CONFIG of the index, as plain keys.
        layers: the tracked layers, as plain keys.
        ids: key of the ids in a batch; None if rows are known by their tokens.
        sightings: how the rows of an example become one that training saw several times.
        attempts: the step that each attempt goes on from.
        generation: the generation that it was published as; None until then.
    """

    run: str
    config: Mapping[str, Any]
    layers: Sequence[Mapping[str, Any]]
    ids: str | None
    sightings: Sightings
    attempts: tuple[int, ...] = ()
    generation: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether rows may be added."""
        return self.generation is None

    @property
    def checkpoint(self) -> str:
        """What stands for the changing checkpoint in the spec of the rows."""
        return f"recorded:{self.run}"

    def row_checkpoint(self, steps: Sequence[int]) -> str:
        """The column `checkpoint` of a row: the training, and the steps at which the row was made.

        Without steps it was made at the trained model.
        """
        if not steps:
            return f"{self.checkpoint}/end"
        return f"{self.checkpoint}/step{'s' if len(steps) > 1 else ''}-{','.join(map(str, steps))}"

    def are_valid(self, attempt: int, steps: np.ndarray) -> np.ndarray:
        """Whether rows of an attempt, made at these steps, were not undone by a later attempt."""
        later = self.attempts[attempt + 1 :]
        return steps <= min(later) if later else np.ones(len(steps), bool)

    def with_attempt(self, start_step: int) -> "Recording":
        """The recording with a new attempt that goes on from a step."""
        return replace(self, attempts=(*self.attempts, start_step))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a process of an attempt has come.

    Attributes:
        attempt: number of the attempt.
        step: the newest step whose rows are durable.
        rows: number of its rows.
        stopped: why recording has stopped; None while it goes on.
    """

    attempt: int
    step: int
    rows: int
    stopped: str | None = None


class Journal:
    """The objects of the newest recording of an index.

    Args:
        uri: URI of the index.
        storage: settings of its storage.
    """

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self._uri = uri
        self._objects = Objects(uri, storage)

    def current(self) -> Recording | None:
        """The newest recording; None if there is none.

        Raises:
            DamagedIndexError: its object is damaged.
        """
        content = self._objects.get_bytes(_CURRENT)
        if content is None:
            return None
        value = unsealed(parse_object(content))
        if value is None or value.get("format") != _FORMAT:
            raise damaged(self._uri, f"_lorif/{_CURRENT} differs from its checksum; delete it to give the rows up")
        del value["format"]
        return Recording(**{**value, "attempts": tuple(value["attempts"])})

    def put(self, recording: Recording) -> None:
        """Store what is recorded."""
        self._objects.put(_CURRENT, sealed({"format": _FORMAT, **asdict(recording)}))

    def write_rows(self, recording: Recording, attempt: int, process: int, serial: int, rows: pa.Table) -> None:
        """Store a piece."""
        buffer = io.BytesIO()
        with pa.ipc.new_file(buffer, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(rows)
        content = buffer.getvalue()
        name = f"rows-{attempt:04d}-{process:04d}-{serial:08d}-{xxh3_64_hexdigest(content)}.arrow"
        self._objects.put_bytes(f"{_FOLDER}/{recording.run}/{name}", content)

    def pieces(self, recording: Recording) -> list[str]:
        """Names of the pieces, by attempt, process and time."""
        return [name for name in self._names(recording) if name.startswith("rows-")]

    def attempt_of(self, piece: str) -> int:
        """The attempt that wrote a piece."""
        return int(piece.split("-")[1])

    def read_rows(self, recording: Recording, piece: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of a piece. Raises DamagedIndexError if it differs from its digest."""
        content = self._objects.get_bytes(f"{_FOLDER}/{recording.run}/{piece}")
        if content is None or not piece.endswith(f"-{xxh3_64_hexdigest(content)}.arrow"):
            raise damaged(
                self._uri, f"_lorif/{_FOLDER}/{recording.run}/{piece} is gone or differs from its digest"
            )
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
        return table if columns is None else table.select(list(columns))

    def write_whitening(self, recording: Recording, whitening: RecordedWhitening) -> None:
        """Store the whitening of the rows."""
        self._objects.put_bytes(f"{_FOLDER}/{recording.run}/whitening.npz", whitening_bytes(whitening))

    def whitening(self, recording: Recording) -> RecordedWhitening | None:
        """The whitening of the rows; None if it has not been made."""
        content = self._objects.get_bytes(f"{_FOLDER}/{recording.run}/whitening.npz")
        return None if content is None else whitening_of(content)

    def write_scales(self, recording: Recording, scales: RecordedScales) -> None:
        """Store the scales of the rows."""
        self._objects.put_bytes(f"{_FOLDER}/{recording.run}/scales.npz", scales_bytes(scales))

    def scales(self, recording: Recording) -> RecordedScales | None:
        """The scales of the rows; None if they have not been read, or there are none."""
        content = self._objects.get_bytes(f"{_FOLDER}/{recording.run}/scales.npz")
        return None if content is None else scales_from(content)

    def write_progress(self, recording: Recording, process: int, progress: Progress) -> None:
        """Store how far a process has come; no attempt overwrites the progress of a newer one."""
        name = f"progress-{progress.attempt:04d}-{process:04d}.json"
        self._objects.put(f"{_FOLDER}/{recording.run}/{name}", asdict(progress))

    def progress(self, recording: Recording) -> list[Progress]:
        """How far the processes of the newest attempt have come."""
        newest = f"progress-{len(recording.attempts) - 1:04d}-"
        names = [name for name in self._names(recording) if name.startswith(newest)]
        values = (self._objects.get(f"{_FOLDER}/{recording.run}/{name}") for name in names)
        return [Progress(**value) for value in values if value is not None]

    def write_moments(self, recording: Recording, attempt: int, process: int, sums: Covariances) -> None:
        """Store the sums of a process so far, in place of its earlier ones."""
        name = f"moments-{attempt:04d}-{process:04d}.npz"
        self._objects.put_bytes(f"{_FOLDER}/{recording.run}/{name}", moments_bytes(sums))

    def moments(self, recording: Recording) -> Covariances:
        """The sums of all processes and attempts."""
        summed = Covariances()
        for name in self._names(recording):
            content = self._objects.get_bytes(f"{_FOLDER}/{recording.run}/{name}")
            if name.startswith("moments-") and content is not None:
                summed.add(moments_of(content))
        return summed

    def empty(self, recording: Recording) -> None:
        """Remove pieces, whitening and sums of a recording that was published or given up."""
        self._objects.remove(f"{_FOLDER}/{recording.run}/{name}" for name in self._names(recording))

    def _names(self, recording: Recording) -> list[str]:
        entries = self._objects.names(f"{_FOLDER}/{recording.run}")
        return [entry.name.rpartition("/")[2] for entry in entries]


def require_open(recording: Recording | None, uri: str) -> Recording:
    """The recording. Raises LorifError if there is none whose rows can be published."""
    if recording is None or not recording.is_open:
        raise LorifError(f"the index {uri} has no unfinished recording; record a training first")
    return recording
