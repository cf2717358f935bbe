"""A thread that takes rows from the training and writes pieces; training waits only if it is far behind."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from lorif_core.errors import LorifError, UserError
from lorif_core.gradients.extract import Extraction
from lorif_core.model.transfer import HostCopy
from lorif_core.recording.training_batch import TrainingBatch, content_key

PATIENCE = 60.0
"""Seconds that training waits for a store that has fallen behind, before recording stops."""
_WAITING = 64  # batches
_PIECE_BYTES = 8 * 2**20
_PIECE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class RowsOnTheirWay:
    """The rows of a batch, which a GPU may still compute.

    Attributes:
        batch: the examples.
        labels: (B, T) targets, if the forward pass did not get them.
        extraction: losses, codes and scales.
        residual: what the loss was besides a cross-entropy.
    """

    batch: TrainingBatch
    labels: HostCopy | None
    extraction: Extraction
    residual: HostCopy


class Writer:
    """Writes pieces behind the training.

    Args:
        write: writes a piece.
        failed: called once, in the thread, with the error that ended it.
        with_tokens: whether tokens and labels are stored, too.
    """

    def __init__(
        self, write: Callable[[pa.Table], None], failed: Callable[[Exception], None], *, with_tokens: bool
    ) -> None:
        self._write, self._failed, self._with_tokens = write, failed, with_tokens
        self._queue: queue.Queue[RowsOnTheirWay | threading.Event | None] = queue.Queue(_WAITING)
        self._rows: list[pa.Table] = []
        self._since = time.monotonic()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="lorif recording", daemon=True)
        self._thread.start()

    def put(self, rows: RowsOnTheirWay) -> None:
        """Hand rows over. Raises LorifError if the store has fallen too far behind."""
        try:
            self._queue.put(rows, timeout=PATIENCE)
        except queue.Full:
            raise LorifError(
                f"the store has taken no rows for {PATIENCE:.0f} seconds; recording does not hold training up"
            ) from None

    def flush(self) -> None:
        """Wait until all rows so far are stored. Raises the error that ended the thread."""
        done = threading.Event()
        self._queue.put(done)
        while not done.wait(1.0):
            if not self._thread.is_alive():
                break
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                if self._error is None:
                    self._take(item)
            except Exception as error:  # noqa: BLE001  whatever fails here must not reach the training
                self._error, self._rows = error, []
                self._failed(error)
            if isinstance(item, threading.Event):
                item.set()

    def _next(self) -> RowsOnTheirWay | threading.Event | None:
        """The next item; an event of our own when a piece has waited long enough."""
        try:
            return self._queue.get(timeout=_PIECE_SECONDS)
        except queue.Empty:
            return threading.Event()

    def _take(self, item: RowsOnTheirWay | threading.Event) -> None:
        if isinstance(item, RowsOnTheirWay):
            self._rows.append(self._table(item))
        size = sum(rows.nbytes for rows in self._rows)
        is_old = time.monotonic() - self._since > _PIECE_SECONDS
        if self._rows and (isinstance(item, threading.Event) or size >= _PIECE_BYTES or is_old):
            self._write(pa.concat_tables(self._rows))
            self._rows = []
        if not self._rows:
            self._since = time.monotonic()

    def _table(self, item: RowsOnTheirWay) -> pa.Table:
        batch, result = item.batch, item.extraction.result()
        if float(item.residual.wait()) > batch.largest_residual:
            raise UserError(
                f"at step {batch.step} the gradient at the output head is not that of a next-token cross-entropy"
            )
        labels = batch.labels if item.labels is None else item.labels.wait().numpy()
        assert labels is not None
        examples = batch.examples(labels)
        columns = {
            "key": pa.array([content_key(*example) for example in examples], pa.binary()),
            "id": pa.array(batch.ids, pa.string()) if batch.ids else pa.nulls(len(examples), pa.string()),
            "step": pa.array([batch.step] * len(examples), pa.int64()),
            "loss": pa.array(result.losses),
            "fault": pa.array(result.faults, pa.string()),
            "codes": _lists(result.codes),
            "scales": _lists(result.scales),
        }
        if self._with_tokens:
            columns |= {name: _tokens(examples, side) for side, name in enumerate(("tokens", "labels"))}
        return pa.table(columns)


def _lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _tokens(examples: Sequence[tuple[np.ndarray, np.ndarray]], side: int) -> pa.Array:
    return pa.array([example[side] for example in examples], pa.list_(pa.int32()))


def host_copy(tensor: torch.Tensor | None) -> HostCopy | None:
    """A copy on its way to the host, if there is a tensor."""
    return None if tensor is None else HostCopy(tensor)
