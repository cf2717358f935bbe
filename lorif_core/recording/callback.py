"""Recording with the Trainer of transformers, and with trainers that derive from it, such as TRL's SFTTrainer."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorif_core.errors import LorifError, UserError
from lorif_core.recording import processes
from lorif_core.recording.capture import IDS_KEY
from lorif_core.recording.record import finish, is_checkpoint, make_settings, start
from lorif_core.recording.recorder import Recorder
from lorif_core.recording.settings import RecordingSettings, Sightings
from lorif_core.storage.faults import one_line

if TYPE_CHECKING:
    from lorif_core.corpus.in_memory import Records

log = logging.getLogger(__name__)


class LorifCallback(TrainerCallback):
    """Records while a Trainer trains, and publishes the index when training ends.

    Rows begin after the warm-up. A run that is resumed from a checkpoint goes on with its recording.

    Args:
        index: folder or URI of the index.
        corpus: what the model is trained on, as for `lorif_core.build`.
        ids: column of ids, instead of a corpus; the trainer then needs the data collator `WithIds`.
        checkpoint: folder of the trained model; None saves it to `recorded` in the trainer's output folder.
        columns: further keys of the section `corpus`.
        sightings: `last`, `mean` or `each`, as for `lorif_core.record`.
        keys: further keys and sections of CONFIG, such as `preset="fine"`.

    Raises:
        UserError: a setting cannot be recorded. Whether the model can is known when training begins.
    """

    def __init__(
        self,
        index: str | Path,
        *,
        corpus: "str | Path | Records | None" = None,
        ids: str | None = None,
        checkpoint: str | Path | None = None,
        columns: Mapping[str, Any] | None = None,
        sightings: Sightings = "last",
        **keys: Any,
    ) -> None:
        self._checkpoint = checkpoint
        self._make_settings = lambda checkpoint, begin: make_settings(
            index, checkpoint, corpus=corpus, ids=ids, columns=columns, begin=begin, sightings=sightings, **keys
        )
        self._make_settings(checkpoint or ".", 0)
        self._settings: RecordingSettings | None = None
        self.recorder: Recorder | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin an attempt at the step that the trainer goes on from."""
        if args.torch_compile:
            raise UserError("recording needs hooks that compiled code does not call; set torch_compile=False")
        begin = args.get_warmup_steps(state.max_steps)
        checkpoint = self._checkpoint or Path(args.output_dir) / "recorded"
        self._settings = self._make_settings(checkpoint, begin)
        self.recorder = start(kwargs["model"], self._settings, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step, and make rows durable before a checkpoint that goes on from them is saved."""
        if self.recorder is not None:
            optimizer = kwargs.get("optimizer")
            self.recorder.end_step(state.global_step, [] if optimizer is None else [optimizer])
            if control.should_save:
                self.recorder.flush()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """As at the end of a step."""
        if self.recorder is not None and control.should_save:
            self.recorder.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the trained model, unless it has a place already, and publish the index.

        A failure is logged, and the training ends as without a recording.
        """
        recorder, settings = self.recorder, self._settings
        self.recorder = None
        if recorder is None or settings is None:
            return
        saves = self._checkpoint is None and processes.process_number() == 0 and not _is_sharded(kwargs["model"])
        try:
            if saves:
                _save(kwargs, settings.config.model.path)
        except Exception as error:  # noqa: BLE001  as below
            recorder.close()  # the other processes wait there
            _log_failure(settings, error)
            return
        try:
            finish(recorder, settings)
        except Exception as error:  # noqa: BLE001  the trained model is worth more than its index
            _log_failure(settings, error)


def _save(kwargs: Mapping[str, Any], folder: str) -> None:
    """Save the model that training has ended with, and its tokenizer."""
    kwargs["model"].save_pretrained(folder)
    tokenizer = kwargs.get("processing_class")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    assert is_checkpoint(folder)


def _log_failure(settings: RecordingSettings, error: Exception) -> None:
    """Say that the rows stay in the journal, and where an error comes from that has no message of its own."""
    is_explained = isinstance(error, LorifError)
    cause = str(error) if is_explained else f"{type(error).__name__}: {one_line(error)}"
    log.error(
        "the recording of %s was not published: %s; its rows stay, and publish_recording goes on with them",
        settings.config.index, cause, exc_info=None if is_explained else error,
    )  # fmt: skip


def _is_sharded(model: Any) -> bool:
    """Whether FSDP2 has cut the weights, so that one process cannot save them."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


class WithIds:
    """A data collator that keeps a column of ids in the batch, where a recorder finds and removes it.

    The trainer must not remove the column before: `TrainingArguments(remove_unused_columns=False)`.

    Args:
        collator: makes the batch of all other columns.
        column: the column of ids.
        drop: further columns that the model does not take, such as texts.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], column: str, drop: Sequence[str] = ()) -> None:
        self._collator, self._column, self._drop = collator, column, {column, *drop}

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Any:
        """The batch with its ids."""
        ids = [str(feature[self._column]) for feature in features]
        rest = [{key: value for key, value in feature.items() if key not in self._drop} for feature in features]
        batch = self._collator(rest)
        batch[IDS_KEY] = ids
        return batch
