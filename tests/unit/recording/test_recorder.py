"""Invariant: whatever fails stops the recording and not the training, and a restored training doubles no row."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorif_core.errors import StoreUnavailableError, UserError
from lorif_core.recording.journal import Journal
from lorif_core.recording.record import record
from tests.models import llama, scaled
from tests.unit.recording.trainings import (
    COLUMNS,
    EXACT,
    SMALL,
    batches_of,
    corpus_of,
    journal_rows,
    padded,
    recorded,
    texts,
    train,
)

EXAMPLES = texts(32)
CORPUS = corpus_of(EXAMPLES)
BATCHES = [padded(batch) for batch in batches_of(EXAMPLES, 4)]


def arguments(folder: Path, **settings: Any) -> dict[str, Any]:
    return recorded(folder, corpus=CORPUS, columns=COLUMNS, **{**SMALL, **settings})


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def plain_weights() -> torch.Tensor:
    model = scaled(llama())
    train(model, BATCHES, rate=0.1)
    return weights_of(model)


def test_a_store_that_fails_stops_the_recording_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise StoreUnavailableError("the store is away")

    model = scaled(llama())
    with record(model, **arguments(tmp_path)) as recorder:
        monkeypatch.setattr(Journal, "write_rows", refuse)
        train(model, BATCHES[:5], recorder, rate=0.1)
        recorder.flush()
        assert recorder.stopped == "the store is away"
        train(model, BATCHES, rate=0.1, first=5)
    assert torch.equal(weights_of(model), plain_weights())
    errors = [entry.message for entry in caplog.records if entry.levelno == logging.ERROR]
    assert len(errors) == 2 and "training goes on" in errors[0] and "not complete" in errors[1]


@pytest.mark.parametrize("place", ["encode", "split", "whiten"])
def test_an_error_in_a_hook_stops_the_recording_only(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    target = {
        "encode": "lorif_core.gradients.capture.encode",
        "split": "lorif_core.recording.segments.Segments.split",
        "whiten": "lorif_core.recording.recorder.whiten",
    }[place]
    monkeypatch.setattr(target, fail)
    model = scaled(llama())
    with record(model, **arguments(tmp_path)) as recorder:
        train(model, BATCHES, recorder, rate=0.1)
    assert recorder.stopped is not None
    assert torch.equal(weights_of(model), plain_weights())


def test_another_loss_than_cross_entropy_is_refused(tmp_path: Path) -> None:
    def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(input_ids=batch["input_ids"]).logits.square().mean()

    model = scaled(llama())
    with record(model, **arguments(tmp_path)) as recorder:
        train(model, BATCHES, recorder, loss=loss)
    assert recorder.stopped is not None and "cross-entropy" in recorder.stopped


def test_a_training_killed_five_times_ends_with_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    batches = [*BATCHES, *BATCHES]
    calm = scaled(llama())
    with record(calm, **arguments(tmp_path / "calm", **EXACT)) as recorder:
        train(calm, batches, recorder, rate=0.01)
    rng, saved, step = np.random.default_rng(0), scaled(llama()).state_dict(), 0
    for attempt in range(6):
        model = llama()
        model.load_state_dict(saved)
        until = len(batches) if attempt == 5 else min(int(rng.integers(step + 1, len(batches))), len(batches) - 1)
        checkpoint = (step + until) // 2
        with record(model, start_step=step, **arguments(tmp_path / "killed", **EXACT)) as recorder:
            train(model, batches[:checkpoint], recorder, rate=0.01, first=step)
            recorder.flush()
            saved = {name: value.clone() for name, value in model.state_dict().items()}
            train(model, batches[:until], recorder, rate=0.01, first=checkpoint)
            if attempt < 5:
                recorder.flush() if attempt % 2 else recorder._writer.close()  # rows after the checkpoint may stay
                recorder._flush = lambda: None  # type: ignore[method-assign]
        step = checkpoint
    assert torch.equal(weights_of(model), weights_of(calm))
    expected, found = journal_rows(tmp_path / "calm")[2], journal_rows(tmp_path / "killed")[2]
    assert found.keys() == expected.keys()
    for key, rows in expected.items():
        same = ("step", "codes", "scales", "loss")
        assert [[row[name] for name in same] for row in found[key]] == [
            [row[name] for name in same] for row in rows
        ]


def test_steps_of_the_warm_up_have_no_rows(tmp_path: Path) -> None:
    model = scaled(llama())
    with record(model, begin=3, **arguments(tmp_path)) as recorder:
        train(model, BATCHES, recorder, accumulate=1)
    steps = {row["step"] for rows in journal_rows(tmp_path)[2].values() for row in rows}
    assert steps == {6, 7, 8}, "steps 4 and 5 made the whitening"


def test_evaluation_between_steps_leaves_no_rows(tmp_path: Path) -> None:
    def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            model(**BATCHES[-1])
        model.eval()
        model(**BATCHES[-1])
        model.train()
        return model(**batch).loss

    model = scaled(llama())
    with record(model, **arguments(tmp_path)) as recorder:
        train(model, BATCHES[:6], recorder, loss=loss)
    rows = journal_rows(tmp_path)[2]
    assert recorder.stopped is None and sum(map(len, rows.values())) == 16


class _Wrapped(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner


def test_what_cannot_be_recorded_is_refused_at_the_start(tmp_path: Path) -> None:
    for model, settings, message in (
        (_Wrapped(llama()), {}, "compiled"),
        (torch.nn.DataParallel(llama()), {}, "DistributedDataParallel"),
        (llama(), {"preset": "paper"}, "lorif build"),
        (llama(), {"sightings": "last", "ids": "id"}, "either a corpus or"),
    ):
        with pytest.raises(UserError, match=message), record(model, **arguments(tmp_path, **settings)):
            pass
    compiled = llama()
    compiled.model.layers[0].mlp.compile()
    with (
        pytest.raises(UserError, match=r"model.layers.0.mlp is compiled"),
        record(compiled, **arguments(tmp_path)),
    ):
        pass


def test_other_settings_cannot_go_on_with_a_recording(tmp_path: Path) -> None:
    with record(llama(), **arguments(tmp_path)) as recorder:
        first = recorder.recording.run
    with record(llama(), start_step=2, **arguments(tmp_path)) as recorder:
        assert recorder.recording.run == first and recorder.recording.attempts == (0, 2)
    other = {"code": {"rank": 2}, "sightings": "mean"}
    with (
        pytest.raises(UserError, match="other settings"),
        record(llama(), start_step=2, **arguments(tmp_path, **other)),
    ):
        pass
    with record(llama(), **arguments(tmp_path)) as recorder:
        assert recorder.recording.run != first, "a training that begins anew replaces all rows"
