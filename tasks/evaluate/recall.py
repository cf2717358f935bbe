"""The steps of `lorif evaluate recall`: plant sources in the corpus, see how far up every method ranks them."""

from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.evaluation.inputs import load_material
from lorif_core.evaluation.planting import PlantedFolder, plant, planting_identity
from lorif_core.evaluation.recall import Source, recall_of_sources
from lorif_core.evaluation.results import Figure, Measured, csv_file, json_file, tabulate, write_files
from lorif_core.search.queries import read_pairs


@task(name="plant sources", cache_policy=NO_CACHE)
def plant_sources(evaluation: EvaluationConfig, out: str) -> tuple[EvaluationConfig, str, list[Source]]:
    """The evaluation over the planted corpus, the folder that is its own, and what is planted where.

    Raises:
        UserError: `out` holds another planted corpus, or checkpoint, corpus, queries or pairs are not what they
            should be.
    """
    config, recall = evaluation.base(), evaluation.recall
    material = load_material(evaluation)
    pairs = [] if recall.pairs is None else read_pairs(recall.pairs, config.storage)
    planted = plant(material, recall, pairs, config.corpus.max_length)
    folder = PlantedFolder(out, config.storage)
    folder.keep(planted, planting_identity(material, recall, pairs))
    get_run_logger().info(
        "%d sources of %d queries in a corpus of %d examples",
        len(planted.sources),
        len(planted.queries),
        len(planted.examples),
    )
    return folder.evaluation(evaluation), folder.uri, list(planted.sources)


@task(name="write recall", cache_policy=NO_CACHE)
def write_recall(
    evaluation: EvaluationConfig, out: str, sources: list[Source], measured: list[Measured]
) -> dict[str, Any]:
    """Recall and reciprocal ranks of every method and kind of plant, with intervals, into `out`; the summary.

    And, as `search`, what searches of the methods' indexes find of what an exact scan finds.
    """
    found = {
        method.name: recall_of_sources(method.scores, sources, evaluation.recall.cutoffs) for method in measured
    }
    named = next(iter(found.values()))
    figures = [
        Figure({"kind": kind, "measure": measure}, {name: values[kind, measure] for name, values in found.items()})
        for kind, measure in named
    ]
    rows, differences = tabulate(measured, figures, evaluation.compared(found))
    searches = [{"method": method.name, **row} for method in measured for row in method.searches]
    queries, examples = measured[0].scores.shape
    summary = {
        "queries": queries, "examples": examples, "sources": len(sources), "methods": rows,
        "differences": differences, "search": searches,
    }  # fmt: skip
    files = {"recall.csv": csv_file(rows), "recall.json": json_file(summary)}
    if searches:
        files["recall-search.csv"] = csv_file(searches)
    write_files(out, evaluation.base().storage, files)
    create_table_artifact(key="recall", table=rows, description="Recall of planted sources and bytes per example")
    return summary
