"""Flow `demo`: the whole story on one machine, from a text to a report that judges itself; then more of both."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.build import build
from flows.update import update
from lorif_core.report.batch_outputs import write_answers
from lorif_core.tables.store import Store
from tasks.cluster import cluster
from tasks.demo.acts import act, what_changed
from tasks.demo.steps import (
    add_docstrings,
    continue_training,
    demo_config,
    demo_place,
    demo_queries,
    judge,
    train_model,
    write_corpus,
)

_TRAINING_SECONDS, _CONTINUED_SECONDS = 60.0, 30.0
_TOP_K = 5
_TITLE = "Which passages of Python's documentation made the model say this?"


@flow(name="demo", flow_run_name="demo {out}", persist_result=False)
def demo(out: Path, store: str = "local") -> dict[str, Any]:
    """Train, index, ask; then data arrive: train on, update, ask again; judge, and report what has changed.

    The summary is also written to `out`. With the store `s3`, corpus, checkpoints and index are in an object store
    that lives as long as the demo.
    """
    out.mkdir(parents=True, exist_ok=True)
    corpus, queries = write_corpus(out), demo_queries()
    model = train_model(corpus, out, _TRAINING_SECONDS)
    with demo_place(store, out) as place:
        config = demo_config(place, corpus, model, out)
        with cluster(config.compute):  # one Ray for all of it
            first = act(config, build, queries, out, explained=0)
            corpus = add_docstrings(corpus)
            continued = continue_training(model, corpus, out, _CONTINUED_SECONDS)
            config = demo_config(place, corpus, continued, out)
            second = act(config, update, queries, out)
        summary = write_answers(
            str(out), Store(config.index, config.storage), second.generation, second.first(_TOP_K), _TITLE,
            timings=[
                ("train", model.seconds), ("first build", first.made), ("first attribute", first.asked),
                ("train further", continued.seconds), ("attribute", second.asked),
            ],
            judge=judge(config, corpus),
            change=what_changed(config, first, second, _TOP_K),
        )  # fmt: skip
    return {"report": str(out / "report.html"), **summary}
