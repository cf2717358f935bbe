"""Flow `demo`: the whole story on one machine, from a text to a report that judges itself."""

import time
from pathlib import Path
from typing import Any

from prefect import flow

from flows.build import build
from lorif_core.answers import write_answers
from lorif_core.store import Store
from lorif_core.unfinished import Unfinished
from tasks.attribute import attribute_queries
from tasks.cluster import cluster
from tasks.demo import demo_config, demo_place, demo_queries, judge, train_model, write_corpus

_TRAINING_SECONDS = 60.0
_TOP_K = 5


@flow(name="demo", flow_run_name="demo {out}", persist_result=False)
def demo(out: Path, store: str = "local") -> dict[str, Any]:
    """Train, index, ask, judge, report; the summary that is also written to `out`.

    With the store `s3`, corpus, checkpoint and index are in an object store that lives as long as the demo.
    """
    out.mkdir(parents=True, exist_ok=True)
    corpus = write_corpus(out)
    model = train_model(corpus, out, _TRAINING_SECONDS)
    with demo_place(store, out) as place:
        config = demo_config(place, corpus, model, out)
        with cluster(config.compute):  # one Ray for the build and the questions
            generation = build(config)
            started = time.perf_counter()
            run = Unfinished(config, demo_queries(), _TOP_K, str(out), generation)
            attribute_queries(config, run)
            attributed = time.perf_counter() - started
        checks = judge(config, corpus)
        title = "Which passages of the Python language reference made the model say this?"
        timings = [("train", model.seconds), ("attribute", attributed)]
        index = Store(config.index, config.storage)
        summary = write_answers(str(out), index, generation, run.answers(), title, timings, checks)
        run.finish()
    return {"report": str(out / "report.html"), **summary}
