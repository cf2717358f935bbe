"""Invariant: a callback records what the Trainer of transformers trains on, also after a restore."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

import lorif_core as lc
from lorif_core.recording.callback import WithIds
from lorif_core.recording.publishing import publish_recording
from lorif_core.tables.store import Store
from tests.integration.recording.test_publishing import COLUMNS, ROWS, SETTINGS, corpus, load
from tests.tiny_tokenizer import byte_tokenizer

__all__ = ["corpus"]


class Kill(TrainerCallback):
    """Ends a training at a step, as a lost machine does."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            raise KeyboardInterrupt


def tokenizer() -> Any:
    made = byte_tokenizer()
    made.pad_token = "<s>"
    return made


def trainer(model_folder: Path, out: Path, data: Path, callbacks: list[Any], **settings: Any) -> Trainer:
    records = [json.loads(line) for line in data.read_text().splitlines()]
    rows = [{"input_ids": tokenizer()(record["text"])["input_ids"], "id": record["id"]} for record in records]
    collator = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    arguments = TrainingArguments(
        str(out), per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=3,
        learning_rate=1e-4, warmup_steps=1, save_steps=4, logging_strategy="no", use_cpu=True, report_to=[],
        disable_tqdm=True, remove_unused_columns=False, **settings,
    )  # fmt: skip
    return Trainer(
        load(model_folder), arguments, train_dataset=rows, data_collator=WithIds(collator, "id"),
        processing_class=tokenizer(), callbacks=callbacks,
    )  # fmt: skip


def steps_of(index: Path) -> dict[str, str]:
    """example_id -> step at which its row was made."""
    store = Store(str(index))
    batches = store.rows.metadata(store.latest().factors_version, ["example_id", "checkpoint"])
    return {
        row["example_id"]: row["checkpoint"].partition("/")[2] for batch in batches for row in batch.to_pylist()
    }


def callback(index: Path, data: Path, **settings: Any) -> Any:
    return lc.LorifCallback(index, corpus=data, columns=COLUMNS, **{**SETTINGS, **settings})


def test_a_resumed_training_ends_with_the_rows_of_an_undisturbed_one(
    tmp_path: Path, model_folder: Path, corpus: Path
) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    trainer(model_folder, calm, corpus, [callback(calm / "index", corpus)]).train()
    with pytest.raises(KeyboardInterrupt):
        trainer(model_folder, killed, corpus, [callback(killed / "index", corpus), Kill(11)]).train()
    trainer(model_folder, killed, corpus, [callback(killed / "index", corpus)]).train(resume_from_checkpoint=True)
    assert steps_of(calm / "index") == steps_of(killed / "index")
    assert len(steps_of(calm / "index")) == ROWS
    assert Store(str(calm / "index")).latest().changes["recorded"]["steps"] == [4, 15]
    assert lc.open_index(killed / "index").query("the cat").proponents


@pytest.mark.parametrize("place", ["callback._save", "record.publish_recording"])
def test_a_failure_at_the_end_does_not_reach_the_trainer(
    place: str, tmp_path: Path, model_folder: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    index = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(f"lorif_core.recording.{place}", refuse)
        made = trainer(model_folder, tmp_path, corpus, [callback(index, corpus)])
        assert made.train().global_step == 15
    assert "was not published: OutOfMemoryError: CUDA out of memory" in caplog.text
    made.save_model(str(tmp_path / "saved"))
    assert publish_recording(str(index), str(tmp_path / "saved")).rows == ROWS


def test_ids_are_kept_by_the_collator(tmp_path: Path, model_folder: Path, corpus: Path) -> None:
    index = tmp_path / "index"
    trainer(model_folder, tmp_path, corpus, [lc.LorifCallback(index, ids="id", **SETTINGS)]).train()
    assert sorted(steps_of(index)) == sorted(json.loads(line)["id"] for line in corpus.read_text().splitlines())
