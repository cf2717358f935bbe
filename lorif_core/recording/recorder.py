"""The recorder: what it does at each forward pass, backward pass and step of a training."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lorif_core.errors import LorifError
from lorif_core.gradients.capture import CodeSink
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.extract import STORED_DTYPES, ExtractedBatch, Extraction, to_stored
from lorif_core.gradients.whitening import Covariances, CovarianceSink
from lorif_core.recording import processes
from lorif_core.recording.capture import IDS_KEY, TrainingCapture
from lorif_core.recording.journal import BEFORE_METRIC, Journal, Progress, Recording
from lorif_core.recording.metric import RecordedScales, RecordedWhitening, whiten
from lorif_core.recording.settings import RecordingSettings
from lorif_core.recording.tracked_model import TrackedModel
from lorif_core.recording.training_batch import TrainingBatch, training_batch
from lorif_core.recording.training_pass import Pass
from lorif_core.recording.writer import RowsOnTheirWay, Writer, host_copy
from lorif_core.storage.faults import one_line

log = logging.getLogger(__name__)

_PASSES_PER_SUM = 8  # one pass in eight goes on to add to the covariances, which costs 5 % of a row
_GROWTH = 1.5  # of the tokens of the covariances between two times at which they are stored


class Recorder:
    """Records the rows of a training; made by `record`.

    Args:
        tracked: the model.
        settings: what to record.
        journal: where to.
        recording: the recording, with the attempt that begins now.

    Attributes:
        step: optimiser steps that training has made.
        stopped: why recording has stopped; None while it goes on.
        enabled: set it to False to leave batches out, such as those of all epochs but the last.
    """

    def __init__(
        self, tracked: TrackedModel, settings: RecordingSettings, journal: Journal, recording: Recording
    ) -> None:
        self._tracked, self._settings, self._journal, self.recording = tracked, settings, journal, recording
        self.step = recording.attempts[-1]
        self.stopped: str | None = None
        self.enabled = True
        self._layout = CodeLayout(tracked.layers, settings.journal_code(tracked.layers))
        self._device = tracked.modules[0][0].weight.device
        self._sums = CovarianceSink([(layer.d1, layer.d2) for layer in tracked.layers])
        self._sinks: dict[int, CodeSink] = {}
        self._passes = self._serial = self._summed = self._rows = 0
        self._durable = self.step
        self._has_seen_loss = False
        self._roots: Any = None
        self._calibrating = True
        self._whitening: RecordedWhitening | None = None
        self._scales: RecordedScales | None = None
        is_first = processes.process_number() == 0
        self._use(processes.from_first(journal.whitening(recording) if is_first else None))
        self._writer = Writer(self._write, self._stop, with_tokens=settings.ids is not None)
        self._capture = TrainingCapture(
            tracked.called, tracked.layers, tracked.modules, tracked.projections(), self._open_pass, self._take,
            self._close_pass, self._guard,
        )  # fmt: skip
        self._use_scales(processes.from_first(journal.scales(recording) if is_first else None))

    @property
    def bytes_per_row(self) -> int:
        """Bytes of the code of an example in the journal."""
        return self._layout.bytes_per_example

    def end_step(self, step: int | None = None, optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
        """An optimiser step was made. Every process calls this after each of its steps.

        Args:
            step: number of steps so far; None adds one.
            optimizers: the optimisers of the training, for the metric of Adam.
        """
        self.step = self.step + 1 if step is None else step
        if self._calibrating and self.step > self._settings.begin:
            self._guard(lambda: self._calibrate(optimizers))

    def flush(self) -> None:
        """Wait until the rows so far are durable; call it before a checkpoint is saved."""
        if self.stopped is None:
            self._guard(self._flush)

    def close(self) -> bool:
        """Make all rows durable and remove the hooks; returns whether all processes have recorded to the end."""
        self.flush()
        self.abandon()
        (failed,) = processes.total([int(self.stopped is not None)], self._device)
        return failed == 0

    def abandon(self) -> None:
        """Remove the hooks, when training ends by an error; what is durable stays."""
        self._capture.remove()
        self._writer.close()
        self._guard(self._write_progress)

    def _guard(self, function: Callable[[], Any]) -> Any:
        """Call a function within the training, in full precision; whatever fails stops the recording only."""
        try:
            # the training may call backward, and make its steps, within autocast
            with torch.autocast(self._device.type, enabled=False):
                return function()
        except Exception as error:  # noqa: BLE001  a training of days must not end by a row
            self._stop(error)
            return None

    def _stop(self, error: Exception) -> None:
        if self.stopped is not None:
            return
        cause = str(error) if isinstance(error, LorifError) else f"{type(error).__name__}: {one_line(error)}"
        self.stopped = cause
        self._sinks.clear()
        log.error(
            "recording has stopped at step %d, and training goes on: %s; the rows that were stored stay, and "
            "recording goes on when training is restored from a checkpoint",
            self.step + 1, cause, exc_info=None if isinstance(error, LorifError) else error,
        )  # fmt: skip

    @property
    def _early(self) -> int:
        """The last step without codes: until its metric, an undisturbed training has none, either."""
        made = [part.step for part in (self._scales, self._whitening) if part is not None]
        return max(made, default=self._settings.begin)

    def _open_pass(self, inputs: Mapping[str, Any]) -> TrainingBatch | None:
        if self.stopped is not None or not self.enabled:
            return None
        step = self.step + 1
        ids = inputs.get(IDS_KEY if inputs.get(IDS_KEY) is not None else self._settings.ids or IDS_KEY)
        batch = training_batch(
            inputs, ids, self._tracked.pad_id, step, not self._has_seen_loss, step <= self._early
        )
        if self._settings.ids is not None and batch.ids is None:
            raise LorifError(
                f"a batch has no {IDS_KEY}; give the trainer the data collator WithIds, or record with a corpus"
            )
        return batch if batch.segments.bounds else None

    def _take(self, current: Pass, index: int, A_BTd: torch.Tensor, E_BTd: torch.Tensor) -> None:
        if self.stopped is not None:
            return
        if id(current) not in self._sinks:
            self._begin(current)
        if self._adds_to_sums:
            self._sums.take(index, A_BTd, E_BTd)
        if not self._calibrating:
            self._sinks[id(current)].take(index, A_BTd, E_BTd)

    def _begin(self, current: Pass) -> None:
        """Prepare for the pairs of a pass."""
        segments = current.batch.segments
        count, self._passes = len(segments.bounds), self._passes + 1
        if self._calibrating or self._adds_to_sums:
            self._sums.start(segments.lengths, segments.longest)
        sink = CodeSink(self._layout, unbiased=True, roots=self._roots)
        if not self._calibrating:
            sink.start(count, self._device, torch.float32)
        self._sinks[id(current)] = sink

    @property
    def _awaits_scales(self) -> bool:
        return self._tracked.projection.is_adam and self._scales is None

    @property
    def _adds_to_sums(self) -> bool:
        """Whether the pass adds to the covariances, which are those of scaled gradients in the metric of Adam."""
        if not self._settings.is_whitened or self._awaits_scales:
            return False
        return self._calibrating or self._passes % _PASSES_PER_SUM == 0

    def _close_pass(self, current: Pass) -> None:
        sink = self._sinks.pop(id(current), None)
        if self.stopped is not None:
            return
        self._has_seen_loss |= current.is_checked
        if current.scale is None:
            return
        extraction: Extraction | ExtractedBatch
        if current.batch.is_early or self._calibrating:
            extraction = self._without_codes(len(current.batch.segments.bounds))
        elif sink is None:
            return
        else:
            with torch.no_grad():
                codes, scales = sink.codes()
                losses = current.scale.losses.to(codes.device)
                extraction = Extraction(losses, to_stored(codes, self._layout), scales)
        residual = host_copy(current.scale.residual)
        assert residual is not None
        self._writer.put(RowsOnTheirWay(current.batch, host_copy(current.scale.labels), extraction, residual))

    def _without_codes(self, examples: int) -> ExtractedBatch:
        """Rows that say only that training saw these examples, so that publishing can compute their codes."""
        codes = np.zeros((examples, self._layout.stored_width), STORED_DTYPES[self._layout.code.dtype])
        scales = np.zeros((examples, self._layout.scales), np.float32)
        return ExtractedBatch(np.zeros(examples, np.float32), codes, scales, [BEFORE_METRIC] * examples)

    def _calibrate(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Make the metric as soon as all processes together have seen enough examples; all of them enter.

        If gradients are scaled and whitened, the scales come first, and the whitening as many examples later.
        """
        counts = [self._sums.examples, int(self.stopped is not None)]
        examples, failed = processes.total(counts, self._device)
        if failed:
            self._calibrating = False
            raise LorifError("another process of the training has stopped recording")
        if examples < self._settings.calibration_examples:
            return
        if self._awaits_scales:
            self._make_scales(optimizers)
        else:
            self._make_whitening()
        self._sums.reset()

    def _make_scales(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        made = RecordedScales(self._tracked.scales(optimizers), self.step)
        if processes.process_number() == 0:
            self._guard(lambda: self._journal.write_scales(self.recording, made))
        self._use_scales(processes.from_first(made if self.stopped is None else None))
        if self._scales is None:
            self._calibrating = False
            raise LorifError("the second moments of the optimiser could not be stored")
        log.info("recording: the second moments of the optimiser were read after step %d", made.step)

    def _make_whitening(self) -> None:
        summed, whitening = processes.add_up(self._sums.covariances, self._device), None
        if processes.process_number() == 0:
            whitening = self._guard(lambda: self._store_whitening(summed))
        self._use(processes.from_first(whitening))
        if self._whitening is None:
            self._calibrating = False
            raise LorifError("the whitening could not be stored")

    def _store_whitening(self, summed: Covariances) -> RecordedWhitening:
        whitening = whiten(summed, self.step)
        self._journal.write_whitening(self.recording, whitening)
        log.info(
            "recording: the whitening was made of %d examples after step %d", whitening.examples, whitening.step
        )
        return whitening

    def _use(self, whitening: RecordedWhitening | None) -> None:
        """Record with a whitening from now on."""
        if whitening is None:
            return
        self._whitening, self._calibrating = whitening, False
        likes = [torch.empty(0, device=first.weight.device) for first, *_ in self._tracked.modules]
        self._roots = whitening.roots.of_layers(likes)

    def _use_scales(self, scales: RecordedScales | None) -> None:
        """Scale gradients from now on."""
        if scales is None:
            return
        self._scales = scales
        self._capture.use(self._tracked.projections(scales.scales))
        self._calibrating = self._calibrating and self._settings.is_whitened

    def _write(self, rows: pa.Table) -> None:
        attempt, process = len(self.recording.attempts) - 1, processes.process_number()
        self._journal.write_rows(self.recording, attempt, process, self._serial, rows)
        self._serial += 1
        self._rows += pc.sum(pc.not_equal(pc.fill_null(rows.column("fault"), ""), BEFORE_METRIC)).as_py()
        self._durable = max(self._durable, pc.max(rows.column("step")).as_py())
        self._write_progress()

    def _write_progress(self) -> None:
        progress = Progress(len(self.recording.attempts) - 1, self._durable, self._rows, self.stopped)
        self._journal.write_progress(self.recording, processes.process_number(), progress)

    def _flush(self) -> None:
        self._writer.flush()
        sums = self._sums.covariances
        if not self._calibrating and sums.tokens >= _GROWTH * self._summed and sums.tokens:
            attempt = len(self.recording.attempts) - 1
            self._journal.write_moments(self.recording, attempt, processes.process_number(), sums)
            self._summed = sums.tokens
