"""The demo's steps as Prefect tasks: write the corpus, train the model, and choose the questions."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.formatting import format_signed
from lorif_core.report.counterfactual import Counterfactual
from lorif_core.search.queries import Query
from tasks.demo.corpus import (
    QUESTIONS,
    Paragraph,
    Question,
    library_docstrings,
    passages_on_statements,
    write_jsonl,
)
from tasks.demo.model import POSITIONS, DemoModel, continue_demo_model, train_demo_model
from tasks.demo.notes import notes
from tasks.demo.object_store import MotoServer, upload_folder
from tasks.demo.own_answers import own_questions
from tasks.demo.recorded import EPOCHS, RecordingTimes, recording
from tasks.environment import environment
from tasks.orchestration import run_log, task

_DOCSTRINGS = 60
_OWN_ANSWERS = 6
_SEED = 0
_BUCKET = "lorif-demo"
_COLUMNS = {"id": "id", "max_length": POSITIONS}
_SETTINGS = {"projection": {"calibration_examples": 128}}  # fewer than an epoch has, or no row would be recorded


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """The demo's corpus in a folder: the passages of the first act, and docstrings that the second one adds."""

    folder: Path
    first: tuple[Paragraph, ...]
    docstrings: tuple[Paragraph, ...]


@task("write corpus")
def write_corpus(folder: Path) -> DemoCorpus:
    """Cut a part of the language reference into passages, and write these and our notes as JSON Lines."""
    reference, own_notes = passages_on_statements(), notes(_SEED)
    docstrings = library_docstrings(_DOCSTRINGS)
    corpus = DemoCorpus(folder / "corpus", (*reference, *own_notes), tuple(docstrings))
    corpus.folder.mkdir(parents=True)
    write_jsonl(reference, corpus.folder / "language-reference.jsonl")
    write_jsonl(own_notes, corpus.folder / "notes.jsonl")
    run_log().info("%d passages of the language reference, %d notes", len(reference), len(own_notes))
    return corpus


@task("add docstrings")
def add_docstrings(corpus: DemoCorpus) -> None:
    """Add a third file to the corpus: docstrings of the standard library."""
    write_jsonl(corpus.docstrings, corpus.folder / "library-docstrings.jsonl")
    run_log().info("%d docstrings added", len(corpus.docstrings))


@task("train model")
def train_model(corpus: DemoCorpus, folder: Path, epochs: int) -> DemoModel:
    """Train a tokenizer and a small GPT-2 on the passages of the first act."""
    texts = [passage.text for passage in corpus.first]
    return _logged(train_demo_model(texts, folder / "model", epochs, _SEED))


@task("train on")
def train_on(
    corpus: DemoCorpus, model: DemoModel, storage: "DemoStorage", folder: Path
) -> tuple[DemoModel, dict[str, float]]:
    """Train the model further on the whole corpus, and record the rows of the index meanwhile.

    Returns the model, and the seconds of each stage of the recording.
    """
    times = RecordingTimes()
    checkpoint, settings = folder / "model-continued", {**_SETTINGS, "storage": storage.storage}
    recorded = recording(storage.index, storage.upload(corpus.folder), _COLUMNS, checkpoint, settings, times)
    texts = [passage.text for passage in (*corpus.first, *corpus.docstrings)]
    further = continue_demo_model(model.folder, texts, checkpoint, EPOCHS, recorded, _SEED)
    return _logged(further), times.stages(further)


@task("own answers")
def choose_questions(model: DemoModel, corpus: DemoCorpus) -> list[Question]:
    """Questions that the model answers by itself, then those that we typed."""
    own = own_questions(model.folder, corpus.first, _OWN_ANSWERS, _SEED)
    run_log().info("%d answers of the model itself", len(own))
    return [*own, *QUESTIONS]


def _logged(model: DemoModel) -> DemoModel:
    run_log().info(
        "%d parameters, %d epochs in %.0f s, loss %.2f (unigram %.2f)",
        model.parameters, model.epochs, model.seconds, model.final_loss, model.unigram_loss,
    )  # fmt: skip
    return model


@dataclass(frozen=True, slots=True)
class DemoStorage:
    """The storage of the demo's corpus, checkpoint and index: the output folder, or an object store."""

    index: str
    storage: dict[str, Any]
    server: MotoServer | None = None

    def upload(self, folder: Path) -> str:
        """Copy a folder to the storage unless it is there already; returns its URI."""
        return str(folder) if self.server is None else upload_folder(self.server, folder, _BUCKET, folder.name)


@contextmanager
def demo_storage(store: str, folder: Path) -> Iterator[DemoStorage]:
    """The storage of the demo's data; an object store runs until the end of the block."""
    if store == "local":
        yield DemoStorage(str(folder / "index"), {})
        return
    with (
        MotoServer() as server,
        TemporaryDirectory() as cache,
        environment({**server.environment(), "LORIF_CACHE": cache}),
    ):
        server.make_bucket(_BUCKET)
        run_log().info("corpus, checkpoint and index are in s3://%s at %s", _BUCKET, server.url)
        yield DemoStorage(f"s3://{_BUCKET}/index", server.storage(), server)


def demo_config(storage: DemoStorage, corpus: DemoCorpus, model: DemoModel, folder: Path) -> Config:
    """The demo's CONFIG, also written to `folder` so that a user can run `lorif build -c` on it."""
    raw = {
        "index": storage.index,
        "model": {"path": storage.upload(model.folder)},
        "corpus": {"uri": storage.upload(corpus.folder), **_COLUMNS},
        "compute": {"ray": "local", "workers": min(2, os.cpu_count() or 1)},
        "storage": storage.storage,
        **_SETTINGS,
    }
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    return parse_config(raw)


def queries_of(questions: Sequence[Question]) -> list[Query]:
    """The questions as queries."""
    return [
        Query(question.question_id, prompt=question.prompt, completion=question.completion)
        for question in questions
    ]


def notes_on(questions: Sequence[Question], test: Counterfactual | None) -> dict[str, str]:
    """By question, who gave the answer, and what happened to it without the passages of each method."""
    return {question.question_id: _note(question, test) for question in questions}


def _note(question: Question, test: Counterfactual | None) -> str:
    if not question.is_own:
        return "Typed by us."
    outcomes = [] if test is None else test.outcomes(question.question_id)
    if not outcomes:
        return "The model's own answer."
    listed = "; ".join(f"{method}: {format_signed(rise)}" for method, rise, _ in outcomes)
    return f"The model's own answer. Trained again, in nats a token, leaving out {listed}."
