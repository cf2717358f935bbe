"""`record`: a context around the loop of a training."""

import json
import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.corpus.in_memory import store_records
from lorif_core.corpus.shards import check_first_file
from lorif_core.errors import UserError
from lorif_core.lifecycle.plan import projection_spec
from lorif_core.recording import processes
from lorif_core.recording.journal import Journal, Recording
from lorif_core.recording.publishing import publish_recording
from lorif_core.recording.recorder import Recorder
from lorif_core.recording.settings import RecordingSettings, Sightings
from lorif_core.recording.tracked_model import TrackedModel, track
from lorif_core.tables.store import Store

if TYPE_CHECKING:
    from lorif_core.corpus.in_memory import Records

log = logging.getLogger(__name__)


@contextmanager
def record(
    model: torch.nn.Module,
    /,
    index: str | Path,
    *,
    checkpoint: str | Path,
    corpus: "str | Path | Records | None" = None,
    ids: str | None = None,
    columns: Mapping[str, Any] | None = None,
    start_step: int = 0,
    begin: int = 0,
    sightings: Sightings = "last",
    **keys: Any,
) -> Iterator[Recorder]:
    """Record the rows of an index while a loop trains a model, and publish them when the loop ends.

    Steps of the first optimiser that has parameters of the model are counted. In a distributed training every
    process enters this with the same arguments.

    Args:
        model: the model that the loop calls; it may be in DDP, sharded by FSDP2, or have an adapter of PEFT.
        index: folder or URI of the index.
        checkpoint: folder that the loop saves the trained model to, with its tokenizer, before this context ends.
            Without it the rows stay in the journal, for `publish_recording`.
        corpus: what the model is trained on, as for `lorif_core.build`.
        ids: key of the ids in a batch, instead of a corpus: the tokens that training sees become the corpus.
        columns: further keys of the section `corpus`, such as `{"text": "body", "max_length": 256}`.
        start_step: optimiser steps that the training has made, if it goes on from a checkpoint. Rows that an
            earlier attempt made at later steps are replaced.
        begin: optimiser steps without rows at the start, such as those of the warm-up.
        sightings: which row an example has that training saw several times: the last, or the mean of all.
        keys: further keys and sections of CONFIG, such as `preset="fine"`.

    Raises:
        UserError: a setting or the model cannot be recorded. Later failures only stop the recording.
        LorifError: the rows could not be published; they stay in the journal.
    """
    settings = make_settings(
        index, checkpoint, corpus=corpus, ids=ids, columns=columns, begin=begin, sightings=sightings, **keys
    )
    recorder = start(model, settings, start_step)
    handle = register_optimizer_step_post_hook(_StepCounter(recorder, model))
    try:
        yield recorder
    except BaseException:
        recorder.flush()
        recorder.abandon()
        raise
    finally:
        handle.remove()
    finish(recorder, settings)


class _StepCounter:
    """Counts the steps of one parameter of a model, because several optimisers may share the others."""

    def __init__(self, recorder: Recorder, model: torch.nn.Module) -> None:
        self._recorder, self._model = recorder, model
        self._counted: int | None = None

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        stepped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        if self._counted is None:
            own = {id(parameter) for parameter in self._model.parameters()}
            self._counted = next((parameter for parameter in stepped if parameter in own), None)
        if self._counted in stepped:
            self._recorder.end_step()


def make_settings(
    index: str | Path,
    checkpoint: str | Path,
    *,
    corpus: "str | Path | Records | None",
    ids: str | None,
    columns: Mapping[str, Any] | None,
    begin: int,
    sightings: Sightings,
    **keys: Any,
) -> RecordingSettings:
    """The settings of a recording, checked; data of this program are written into the folder of the index.

    Raises:
        UserError: a key is not valid, or cannot be recorded.
    """
    if (corpus is None) == (ids is None):
        raise UserError(
            "record needs either a corpus or the key of the ids in a batch; give one of corpus and ids"
        )
    model = {**keys.pop("model", {}), "path": str(checkpoint)}
    is_place = corpus is None or isinstance(corpus, str | Path)
    section = {**(columns or {}), "uri": "." if corpus is None or not is_place else str(corpus)}
    config = parse_config({**keys, "model": model, "corpus": section, "index": str(index)}, "record")
    settings = RecordingSettings(config, ids, begin, sightings)
    settings.check()
    if not is_place:
        uri = store_records(corpus, config.index, config.storage)
        config = config.model_copy(update={"corpus": config.corpus.model_copy(update={"uri": uri})})
    if corpus is not None:
        check_first_file(config.corpus, config.storage)
    return replace(settings, config=config)


def start(model: torch.nn.Module, settings: RecordingSettings, start_step: int) -> Recorder:
    """Begin an attempt: find the layers, read what the journal has, and register the hooks.

    Raises:
        UserError: the model cannot be recorded, or the index has other rows, or an unfinished recording with other
            settings that a training goes on with.
    """
    config = settings.config
    tracked = track(model, config)
    _check_index(config, tracked, settings)
    journal = Journal(config.index, config.storage)
    recording = None
    if processes.process_number() == 0:
        recording = _next_attempt(journal, _new_recording(settings, tracked), start_step)
        journal.put(recording)
    recording = processes.from_first(recording)
    assert recording is not None
    log.info("recording into %s from step %d: %s", config.index, start_step + 1, tracked.reason)
    return Recorder(tracked, settings, journal, recording)


def _new_recording(settings: RecordingSettings, tracked: TrackedModel) -> Recording:
    config = settings.config.model_dump(mode="json", exclude_unset=False)
    layers = [asdict(layer) for layer in tracked.layers]
    return Recording(uuid.uuid4().hex[:16], config, layers, settings.ids, settings.sightings)


def _next_attempt(journal: Journal, new: Recording, start_step: int) -> Recording:
    """The recording to go on with: the unfinished one, if a training goes on from a checkpoint."""
    current = journal.current()
    if current is None or not current.is_open:
        return new.with_attempt(start_step)
    if not start_step:
        log.warning("training begins anew, so the rows of the unfinished recording %s are given up", current.run)
        journal.empty(current)
        return new.with_attempt(0)
    if _settings_of(current) != _settings_of(new):
        raise UserError(
            "the index has an unfinished recording with other settings or layers, which this training cannot go "
            "on with; use its settings, or another index"
        )
    return current.with_attempt(start_step)


def _settings_of(recording: Recording) -> str:
    """What must not change between attempts."""
    config = {key: value for key, value in recording.config.items() if key not in ("compute", "storage", "update")}
    config["model"] = {**config["model"], "path": None}
    return json.dumps([config, recording.layers, recording.ids, recording.sightings], sort_keys=True)


def _check_index(config: Config, tracked: TrackedModel, settings: RecordingSettings) -> None:
    """Raise UserError if rows of this training could not join those that the index has."""
    stored = Store(config.index, config.storage).newest_spec()
    if stored is None:
        return
    projection = projection_spec(config.projection)
    same = replace(stored.projection, whitening=None, calibration_examples=None)
    differing = [
        name
        for name, is_same in (
            ("layers", stored.layers == tracked.layers),
            ("projection", same == replace(projection, calibration_examples=None)),
            ("code", stored.code == settings.code(tracked.layers)),
        )
        if not is_same
    ]
    if differing:
        raise UserError(
            f"the index {config.index} has rows with other settings ({', '.join(differing)}); record into another "
            f"index, or with the settings of this one"
        )


def finish(recorder: Recorder, settings: RecordingSettings) -> None:
    """End a recording, and publish it if it has gone well and the trained model is there.

    Raises:
        LorifError: as `publish_recording`.
    """
    is_complete = recorder.close()
    config = settings.config
    if processes.process_number() != 0:
        return
    if not is_complete:
        log.error(
            "the recording of %s is not complete, so it is not published; restore the training from a checkpoint "
            "to go on with it, or publish what there is with lorif_core.recording.publishing.publish_recording",
            config.index,
        )  # fmt: skip
    elif not is_checkpoint(config.model.path):
        log.error(
            "%s has no saved model, so the recording of %s is not published; save the trained model there and "
            "call publish_recording", config.model.path, config.index,
        )  # fmt: skip
    else:
        publish_recording(config.index, config.model.path, config.storage.model_dump())


def is_checkpoint(path: str) -> bool:
    """Whether a path is a folder with a saved model, or a place that only loading can tell about."""
    folder = Path(path)
    if "://" in path:
        return True
    return any((folder / name).exists() for name in ("config.json", "adapter_config.json"))
