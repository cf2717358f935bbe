"""Records the rows of the second act while the model trains on, and measures what that takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel

import lorif_core as lc
from lorif_core.errors import LorifError
from lorif_core.report.changes import RECORDING
from tasks.demo.model import DemoModel, Recording

EPOCHS = 3
"""The first makes the metric, the second goes on without recording for comparison, the third records all rows."""

_WITHOUT = 1


@dataclass(slots=True)
class RecordingTimes:
    """When the trained model was saved, and when its rows were published; on the clock of `time.perf_counter`."""

    saved: float = 0.0
    published: float = 0.0

    def stages(self, model: DemoModel) -> dict[str, float]:
        """Seconds that recording added: to the first and to the last epoch, and then to publish."""
        first, without, last = model.epoch_seconds
        return {
            f"{RECORDING}metric": first - without,
            f"{RECORDING}rows": last - without,
            "plan, publish": self.published - self.saved,
        }


def recording(
    index: str,
    corpus: str,
    columns: dict[str, Any],
    checkpoint: Path,
    settings: dict[str, Any],
    times: RecordingTimes,
) -> Recording:
    """Records a training of `EPOCHS` epochs into an index and publishes the rows.

    Args:
        index: the index, as in CONFIG.
        corpus: what the model is trained on, as in CONFIG.
        columns: further keys of the section `corpus`.
        checkpoint: folder that the trained model is saved to.
        settings: further sections of CONFIG.
        times: gets the times.
    """

    @contextmanager
    def recorded(model: GPT2LMHeadModel) -> Iterator[Callable[[int], None]]:
        with lc.record(
            model, index, checkpoint=checkpoint, corpus=corpus, columns=columns, **settings
        ) as recorder:

            def begin_epoch(epoch: int) -> None:
                recorder.enabled = epoch != _WITHOUT

            yield begin_epoch
            times.saved = time.perf_counter()
        times.published = time.perf_counter()
        if recorder.stopped is not None:
            raise LorifError(f"the training was not recorded: {recorder.stopped}")

    return recorded
