"""Flow `demo`: train, index, attribute, and train again as a test; then train on, recorded, and update."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.build import build
from flows.update import update
from lorif_core.config import Config
from lorif_core.report.batch_outputs import write_answers
from lorif_core.tables.store import Store
from tasks.cluster import cluster
from tasks.demo.acts import compare_acts, run_act
from tasks.demo.corpus import Question
from tasks.demo.counterfactual import train_again
from tasks.demo.model import DemoModel
from tasks.demo.steps import (
    DemoCorpus,
    DemoStorage,
    add_docstrings,
    choose_questions,
    demo_config,
    demo_storage,
    notes_on,
    queries_of,
    train_model,
    train_on,
    write_corpus,
)
from tasks.orchestration import flow

_TRAINING_EPOCHS = 14
_TOP_K = 5
_TITLE = "Which passages made the model say this?"


@flow("demo", "demo {out}")
def demo(out: Path, store: str = "local", first_act: bool = False) -> dict[str, Any]:
    """Train a model, index its corpus and attribute what it says; add data, train on, update, attribute again.

    After the first act, which may be the only one, the model is trained again without the passages that
    attribution names. The training that goes on in the second act is recorded, so that it leaves rows behind.

    Returns the summary that it also writes to `out`. With the store `s3`, corpus, checkpoints and index are in an
    object store that runs as long as the demo.
    """
    out.mkdir(parents=True, exist_ok=True)
    corpus = write_corpus(out)
    model = train_model(corpus, out, _TRAINING_EPOCHS)
    questions = choose_questions(model, corpus)
    with demo_storage(store, out) as storage:
        config = demo_config(storage, corpus, model, out)
        with cluster(config.compute):  # one Ray for all steps
            if first_act:
                summary = _first_act(config, model, questions, out)
            else:
                summary = _both_acts(config, corpus, model, questions, storage, out)
    return {"report": str(out / "report.html"), **summary}


def _first_act(config: Config, model: DemoModel, questions: Sequence[Question], out: Path) -> dict[str, Any]:
    """Build the index, and write the answers."""
    first = run_act(config, build, queries_of(questions), out)
    return write_answers(
        str(out), Store(config.index, config.storage), first.generation, first.first(_TOP_K), _TITLE,
        timings=[("train", model.seconds), ("attribute", first.query_seconds)], notes=notes_on(questions, None),
    )  # fmt: skip


def _both_acts(
    config: Config,
    corpus: DemoCorpus,
    model: DemoModel,
    questions: Sequence[Question],
    storage: DemoStorage,
    out: Path,
) -> dict[str, Any]:
    """Build, train again without some passages, train on, update, and write the answers of the second act."""
    queries = queries_of(questions)
    first = run_act(config, build, queries, out, explained=0)
    started = time.perf_counter()
    own = [answer for answer, question in zip(first.answers, questions, strict=True) if question.is_own]
    test = train_again(config, model, own, corpus.first) if own else None
    test_seconds = time.perf_counter() - started
    add_docstrings(corpus)
    further, recording = train_on(corpus, model, storage, out)
    config = demo_config(storage, corpus, further, out)
    index = Store(config.index, config.storage)
    recorded = index.latest()
    second = run_act(config, update, queries, out, before=recording)
    return write_answers(
        str(out), index, second.generation, second.first(_TOP_K), _TITLE,
        timings=[
            ("train", model.seconds), ("train further", further.seconds),
            ("first build", first.build_seconds), ("first attribute", first.query_seconds),
            ("attribute", second.query_seconds), ("train again", test_seconds),
        ],
        change=compare_acts(config, first, second, recorded, _TOP_K),
        counterfactual=test,
        notes=notes_on(questions, test),
    )  # fmt: skip
