"""Flow `demo`: train, index, attribute and report on one machine; then more data, and a test by training again."""

import time
from pathlib import Path
from typing import Any

from flows.build import build
from flows.update import update
from lorif_core.report.batch_outputs import write_answers
from lorif_core.tables.store import Store
from tasks.cluster import cluster
from tasks.demo.acts import compare_acts, run_act
from tasks.demo.counterfactual import train_again
from tasks.demo.steps import (
    add_docstrings,
    choose_questions,
    demo_config,
    demo_storage,
    notes_on,
    queries_of,
    train_model,
    write_corpus,
)
from tasks.orchestration import flow

_TRAINING_SECONDS, _CONTINUED_SECONDS = 60.0, 10.0
_TOP_K = 5
_TITLE = "Which passages of Python's documentation made the model say this?"


@flow("demo", "demo {out}")
def demo(out: Path, store: str = "local") -> dict[str, Any]:
    """Train a model, index and attribute what it says, add data, update and attribute again, and report.

    At the end the model is trained again without the passages that attribution names.

    Returns the summary that it also writes to `out`. With the store `s3`, corpus, checkpoints and index are in an
    object store that runs as long as the demo.
    """
    out.mkdir(parents=True, exist_ok=True)
    corpus = write_corpus(out)
    course = train_model(corpus, out, _TRAINING_SECONDS, _CONTINUED_SECONDS)
    questions = choose_questions(course, corpus)
    queries = queries_of(questions)
    with demo_storage(store, out) as storage:
        config = demo_config(storage, corpus, course.first, out)
        with cluster(config.compute):  # one Ray for all steps
            first = run_act(config, build, queries, out, explained=0)
            add_docstrings(corpus)
            config = demo_config(storage, corpus, course.further, out)
            second = run_act(config, update, queries, out)
            started = time.perf_counter()
            own = [answer for answer, question in zip(second.answers, questions, strict=True) if question.is_own]
            test = train_again(config, course, own, corpus.train) if own else None
            test_seconds = time.perf_counter() - started
        summary = write_answers(
            str(out), Store(config.index, config.storage), second.generation, second.first(_TOP_K), _TITLE,
            timings=[
                ("train", course.first.seconds), ("train further", course.further.seconds),
                ("first build", first.build_seconds), ("first attribute", first.query_seconds),
                ("attribute", second.query_seconds), ("train again", test_seconds),
            ],
            change=compare_acts(config, first, second, _TOP_K),
            counterfactual=test,
            notes=notes_on(questions, test),
        )  # fmt: skip
    return {"report": str(out / "report.html"), **summary}
