"""Invariant: what TRL's SFTTrainer trains on is recorded as a build would make it, however it packs and masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import LlamaForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

import lorif_core as lc
from lorif_core.corpus.tokenise import Example
from lorif_core.recording.recorder import Recorder
from tests.models import llama, scaled
from tests.tiny_tokenizer import VOCAB, byte_tokenizer
from tests.unit.recording.trainings import (
    COLUMNS,
    EXACT,
    built_rows,
    corpus_of,
    differing,
    journal_rows,
    texts,
)

EXAMPLES = texts(24)
KINDS: dict[str, dict[str, Any]] = {
    "padded": {},
    "padding free": {"padding_free": True, "max_length": None},
    "packed": {"packing": True, "max_length": 48},
    "completions": {"completion_only_loss": True},
    "packed completions": {"packing": True, "max_length": 48, "completion_only_loss": True},
}


class Watch(TrainerCallback):
    """Keeps the recorder of a callback, which lets go of it at the end."""

    def __init__(self, recording: Any) -> None:
        self._recording = recording
        self.recorder: Recorder | None = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.recorder = self._recording.recorder


def completions(examples: Sequence[Example]) -> list[Example]:
    """The same examples with prompts of a third of their tokens."""
    masked = []
    for example in examples:
        labels = example.labels.copy()
        labels[: len(labels) // 3] = -100
        masked.append(Example(example.example_id, example.row, example.input_ids, labels, None, ""))
    return masked


def dataset_of(examples: Sequence[Example], *, masked: bool) -> Dataset:
    rows = [{"input_ids": example.input_ids.tolist()} for example in examples]
    if masked:
        for row, example in zip(rows, examples, strict=True):
            row["completion_mask"] = (example.labels != -100).astype(int).tolist()
    return Dataset.from_list(rows)


def sft_trainer(folder: Path, model: LlamaForCausalLM, data: Dataset, **settings: Any) -> SFTTrainer:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = "<s>"
    arguments = SFTConfig(
        str(folder / "out"), per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=3,
        save_strategy="no", logging_strategy="no", report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
        **{"learning_rate": 0.0, **settings},
    )  # fmt: skip
    return SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)


def train(
    folder: Path, examples: Sequence[Example], *, masked: bool, settings: dict[str, Any]
) -> tuple[LlamaForCausalLM, Recorder]:
    """Record a training at learning rate 0."""
    model = scaled(llama(vocab_size=VOCAB))
    recording = lc.LorifCallback(
        folder / "index", corpus=corpus_of(examples), columns=COLUMNS, checkpoint=folder / "none",
        model={"layers": "all"}, **EXACT,
    )  # fmt: skip
    watch = Watch(recording)
    trainer = sft_trainer(folder, model, dataset_of(examples, masked=masked), **settings)
    trainer.add_callback(recording)
    trainer.add_callback(watch)
    trainer.train()
    assert watch.recorder is not None
    return model, watch.recorder


@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_those_of_a_build(kind: str, tmp_path: Path) -> None:
    masked = "completions" in kind
    examples = completions(EXAMPLES) if masked else EXAMPLES
    model, recorder = train(tmp_path, examples, masked=masked, settings=KINDS[kind])
    assert recorder.stopped is None, recorder.stopped
    found = differing(journal_rows(tmp_path)[2], built_rows(model, recorder, examples), examples, recorder)
    assert found["missing"] == 0 and found["gradients"][-1] < 2e-4 and found["losses"] < 1e-3, found


def test_another_loss_than_cross_entropy_is_refused(tmp_path: Path) -> None:
    _, recorder = train(tmp_path, EXAMPLES, masked=False, settings={"loss_type": "dft"})
    assert recorder.stopped is not None and "cross-entropy" in recorder.stopped


@pytest.mark.parametrize("columns", [("text",), ("prompt", "completion")], ids=["texts", "pairs"])
def test_what_the_trainer_made_of_its_data_is_the_corpus(columns: tuple[str, ...], tmp_path: Path) -> None:
    words = [f"the {number} cats" for number in range(24)]
    rows = [{"id": word, **{column: f"{column} of {word} " for column in columns}} for word in words]
    model = scaled(llama(vocab_size=VOCAB))
    trainer = sft_trainer(tmp_path, model, Dataset.from_list(rows), learning_rate=1e-3)
    names = {"tokens": "input_ids", "labels": "labels", "id": "id"}
    trainer.add_callback(
        lc.LorifCallback(tmp_path / "index", corpus=trainer.train_dataset, columns=names, **EXACT)
    )
    trainer.train()
    index = lc.open_index(tmp_path / "index")
    assert sorted(index.scores(["the cats"])[0]) == sorted(words)
    assert index.query("the cats").proponents[0].text.endswith("cats <s>")
