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
    language_reference,
    library_docstrings,
    split,
    write_jsonl,
)
from tasks.demo.model import POSITIONS, Course, DemoModel, continue_demo_model, train_demo_model
from tasks.demo.object_store import MotoServer, upload_folder
from tasks.demo.own_answers import own_questions
from tasks.environment import environment
from tasks.orchestration import run_log, task

_HELD_OUT_SHARE = 0.08
_DOCSTRINGS = 300
_OWN_ANSWERS = 8
_SEED = 0
_BUCKET = "lorif-demo"


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """The demo's corpus in a folder: passages to train on and to index, and passages that the model never sees."""

    folder: Path
    reference: tuple[Paragraph, ...]
    docstrings: tuple[Paragraph, ...]
    held_out: tuple[Paragraph, ...]

    @property
    def train(self) -> tuple[Paragraph, ...]:
        """All passages to train on."""
        return self.reference + self.docstrings


@task("write corpus")
def write_corpus(folder: Path) -> DemoCorpus:
    """Cut the language reference into passages, and write the training passages as JSON Lines."""
    reference, held_out = split(language_reference(), _HELD_OUT_SHARE, _SEED)
    docstrings = library_docstrings(_DOCSTRINGS)
    corpus = DemoCorpus(folder / "corpus", tuple(reference), tuple(docstrings), tuple(held_out))
    corpus.folder.mkdir(parents=True)
    write_jsonl(corpus.reference, corpus.folder / "language-reference.jsonl")
    run_log().info("%d passages to train on, %d held out", len(reference), len(held_out))
    return corpus


@task("add docstrings")
def add_docstrings(corpus: DemoCorpus) -> None:
    """Add a second file to the corpus: docstrings of the standard library."""
    write_jsonl(corpus.docstrings, corpus.folder / "library-docstrings.jsonl")
    run_log().info("%d docstrings added", len(corpus.docstrings))


@task("train model")
def train_model(corpus: DemoCorpus, folder: Path, seconds: float, further_seconds: float) -> Course:
    """Train a tokenizer and a small GPT-2 on the reference, then the model further on the whole corpus."""
    texts = tuple(paragraph.text for paragraph in corpus.reference)
    first = _logged(train_demo_model(texts, folder / "model", seconds, _SEED))
    all_texts = tuple(paragraph.text for paragraph in corpus.train)
    further = continue_demo_model(first.folder, all_texts, folder / "model-continued", further_seconds, _SEED)
    return Course(first, texts, _logged(further), all_texts, _SEED)


@task("own answers")
def choose_questions(course: Course, corpus: DemoCorpus) -> list[Question]:
    """Questions that the model answers by itself, then those that we typed."""
    own = own_questions(course.further.folder, corpus.held_out, _OWN_ANSWERS)
    run_log().info("%d answers of the model itself to %d prompts", len(own), len(corpus.held_out))
    return [*own, *QUESTIONS]


def _logged(model: DemoModel) -> DemoModel:
    run_log().info(
        "%d parameters, %d steps in %.0f s, loss %.2f (unigram %.2f)",
        model.parameters, model.steps, model.seconds, model.final_loss, model.unigram_loss,
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
        "corpus": {"uri": storage.upload(corpus.folder), "id": "id", "max_length": POSITIONS},
        "compute": {"ray": "local", "workers": min(2, os.cpu_count() or 1)},
        "storage": storage.storage,
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
    rises = [] if test is None else test.rises(question.question_id)
    if not rises:
        return "The model's own answer."
    listed = ", by ".join(f"{format_signed(rise)} without {method}" for method, rise in rises)
    return f"The model's own answer. Trained again, its loss in nats a token changes by {listed}."
