"""The steps of `lorif evaluate recall`: plant sources in the corpus, measure how every method ranks them."""

from typing import Any

from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.evaluation.inputs import load_inputs
from lorif_core.evaluation.planting import PlantedFolder, plant, planting_identity
from lorif_core.evaluation.recall import Source, source_recall
from lorif_core.evaluation.results import MethodResults, MetricValues, csv_file, json_file, tabulate, write_files
from lorif_core.search.queries import read_pairs
from tasks.artifacts import show_table
from tasks.orchestration import run_log, task


@task("plant sources")
def plant_sources(evaluation: EvaluationConfig, out: str) -> tuple[EvaluationConfig, str, list[Source]]:
    """Plant sources in the corpus; returns the evaluation over it, the folder of that evaluation, and the sources.

    Raises:
        UserError: `out` has another planted corpus, or checkpoint, corpus, queries or pairs are not valid.
    """
    config, recall = evaluation.base(), evaluation.recall
    inputs = load_inputs(evaluation)
    pairs = [] if recall.pairs is None else read_pairs(recall.pairs, config.storage)
    planted = plant(inputs, recall, pairs, config.corpus)
    folder = PlantedFolder(out, config.storage)
    folder.save(planted, planting_identity(inputs, recall, pairs))
    run_log().info(
        "%d sources of %d queries in a corpus of %d examples",
        len(planted.sources),
        len(planted.queries),
        len(planted.examples),
    )
    return folder.evaluation(evaluation), folder.uri, list(planted.sources)


@task("write recall")
def write_recall(
    evaluation: EvaluationConfig, out: str, sources: list[Source], results: list[MethodResults]
) -> dict[str, Any]:
    """Write recall and reciprocal ranks of every method and kind of planted source to `out`; returns the summary.

    `search` in the summary has the recall of approximate searches of the methods' indexes against an exact scan.
    """
    recalls = {method.name: source_recall(method.scores, sources, evaluation.recall.cutoffs) for method in results}
    measures = next(iter(recalls.values()))
    figures = [
        MetricValues(
            {"kind": kind, "measure": measure}, {name: values[kind, measure] for name, values in recalls.items()}
        )
        for kind, measure in measures
    ]
    rows, differences = tabulate(results, figures, evaluation.compared(recalls))
    searches = [{"method": method.name, **row} for method in results for row in method.searches]
    queries, examples = results[0].scores.shape
    summary = {
        "queries": queries, "examples": examples, "sources": len(sources), "methods": rows,
        "differences": differences, "search": searches,
    }  # fmt: skip
    files = {"recall.csv": csv_file(rows), "recall.json": json_file(summary)}
    if searches:
        files["recall-search.csv"] = csv_file(searches)
    write_files(out, evaluation.base().storage, files)
    show_table(key="recall", table=rows, description="Recall of planted sources and bytes per example")
    return summary
