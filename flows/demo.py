"""Flow `demo`: train, index, attribute and report on one machine; then the same with more data."""

from pathlib import Path
from typing import Any

from flows.build import build
from flows.update import update
from lorif_core.report.batch_outputs import write_answers
from lorif_core.tables.store import Store
from tasks.cluster import cluster
from tasks.demo.acts import compare_acts, run_act
from tasks.demo.steps import (
    add_docstrings,
    continue_training,
    demo_config,
    demo_queries,
    demo_storage,
    run_self_check,
    train_model,
    write_corpus,
)
from tasks.orchestration import flow

_TRAINING_SECONDS, _CONTINUED_SECONDS = 60.0, 30.0
_TOP_K = 5
_TITLE = "Which passages of Python's documentation made the model say this?"


@flow("demo", "demo {out}")
def demo(out: Path, store: str = "local") -> dict[str, Any]:
    """Train, index and attribute; add data, train further, update and attribute again; report the changes.

    Returns the summary that it also writes to `out`. With the store `s3`, corpus, checkpoints and index are in an
    object store that runs as long as the demo.
    """
    out.mkdir(parents=True, exist_ok=True)
    corpus, queries = write_corpus(out), demo_queries()
    model = train_model(corpus, out, _TRAINING_SECONDS)
    with demo_storage(store, out) as storage:
        config = demo_config(storage, corpus, model, out)
        with cluster(config.compute):  # one Ray for all steps
            first = run_act(config, build, queries, out, explained=0)
            corpus = add_docstrings(corpus)
            continued = continue_training(model, corpus, out, _CONTINUED_SECONDS)
            config = demo_config(storage, corpus, continued, out)
            second = run_act(config, update, queries, out)
        summary = write_answers(
            str(out), Store(config.index, config.storage), second.generation, second.first(_TOP_K), _TITLE,
            timings=[
                ("train", model.seconds), ("first build", first.build_seconds),
                ("first attribute", first.query_seconds), ("train further", continued.seconds),
                ("attribute", second.query_seconds),
            ],
            self_checks=run_self_check(config, corpus),
            change=compare_acts(config, first, second, _TOP_K),
        )  # fmt: skip
    return {"report": str(out / "report.html"), **summary}
