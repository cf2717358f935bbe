"""LDS of prefilter scores compared with exact scores, and recall of the search for the strongest rows.

    python -m benchmarks.quality.prefilter EVALUATION OUT [--methods balanced compact quality --result FILE]

OUT is the output of `lorif evaluate lds` with the ground truth and the checkpoint. An index of every method is
built in a temporary folder. The LDS is that of exact and of prefilter scores of all rows. The recall is that of
the search in blocks of 256 rows, compared with exact scores. `alone` is the prefilter of one query at a time,
`batch` that of all queries together.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.run_record import write_result
from flows.build import build
from lorif_core.config import StorageConfig
from lorif_core.evaluation.config import EvaluationConfig, load_evaluation
from lorif_core.evaluation.ground_truth import TruthFolder
from lorif_core.evaluation.lds import Truth, lds, rank_correlation
from lorif_core.evaluation.recall import recall_at
from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.index import Index
from lorif_core.search.prefilter import prefilter_scorer
from lorif_core.search.queries import read_queries
from lorif_core.search.scoring import score_rows
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import PreparedQueries, Search
from lorif_core.tables.store import Store
from tasks.cluster import cluster

_BLOCK = 256
_TOP_K = (10, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="+", default=["balanced", "compact", "quality"])
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    evaluation = load_evaluation(arguments.evaluation)
    folder = TruthFolder(str(arguments.out.resolve()), StorageConfig())
    ids, truth = folder.read(evaluation)
    result = {}
    with cluster(evaluation.base().compute), tempfile.TemporaryDirectory(prefix="lorif-prefilter-") as name:
        for method in arguments.methods:
            index = build_index(evaluation, method, f"{name}/{method}", folder.model)
            result[method] = measure(index, evaluation, ids, truth)
            print(method, json.dumps(result[method]), flush=True)
    if arguments.result:
        write_result(arguments.result, result)


def build_index(evaluation: EvaluationConfig, method: str, uri: str, model: str) -> Index:
    """Build a method's index of the evaluation's corpus."""
    config = evaluation.method(method, uri, model)
    generation = build(config)
    return Index(Store(config.index, config.storage), generation)


def measure(index: Index, evaluation: EvaluationConfig, ids: list[str], truth: Truth) -> dict[str, Any]:
    """LDS, rank correlation with exact scores, and recall."""
    (part,) = index.parts
    (folded,) = index.fold(index.encode(read_queries(evaluation.queries, StorageConfig())))
    blocks = list(part.blocks())
    names = [name for block in blocks for name in block.example_ids]
    codes, scales = torch.cat([block.codes for block in blocks]), torch.cat([block.scales for block in blocks])
    exact_QN = score_rows(codes, scales, part.layout, folded).numpy()
    row_numbers = {name: row for row, name in enumerate(names)}
    order = [row_numbers[name] for name in ids]
    result: dict[str, Any] = {
        "rows": len(names),
        "queries": folded.count,
        "lds": round(float(lds(exact_QN[:, order], truth).mean()), 4),
    }
    exact = {k: search_rows(part.layout, PreparedQueries(folded), k, codes, scales, names) for k in _TOP_K}
    for kind, batch_size in (("alone", 1), ("batch", folded.count)):
        batches = [
            part.prepare(folded.subset(start, start + batch_size)) for start in range(0, folded.count, batch_size)
        ]
        if any(batch.prefilter is None for batch in batches):
            raise SystemExit(f"{len(names)} rows of this code have no prefilter for {batch_size} queries")
        scores_QN = torch.cat(
            [prefilter_scorer(part.layout, batch.prefilter)(codes, scales) for batch in batches if batch.prefilter]
        ).numpy()
        result[kind] = {
            "look": type(batches[0].prefilter).__name__,
            "lds": round(float(lds(scores_QN[:, order], truth).mean()), 4),
            "spearman": round(float(rank_correlation(scores_QN.T, exact_QN.T).mean()), 5),
        }
        for k in _TOP_K:
            tops = [top for batch in batches for top in search_rows(part.layout, batch, k, codes, scales, names)]
            result[kind][f"recall@{k}"] = {
                side: recall(tops, exact[k], side) for side in ("proponents", "opponents")
            }
    return result


def search_rows(
    layout: CodeLayout,
    queries: PreparedQueries,
    k: int,
    codes: torch.Tensor,
    scales: torch.Tensor,
    names: list[str],
) -> list[TopK]:
    """Search all rows block by block."""
    search = Search(layout, queries, k)
    for start in range(0, len(names), _BLOCK):
        block = slice(start, start + _BLOCK)
        search.update(codes[block], scales[block], names[block])
    return search.best


def recall(tops: list[TopK], exact: list[TopK], side: str) -> float:
    """Share of the exact strongest rows, ties ordered by id, that a search returned; mean over queries."""
    retrieved, relevant = (
        [[hit.example_id for hit in getattr(top, side)] for top in each] for each in (tops, exact)
    )
    return round(float(recall_at(retrieved, relevant).mean()), 4)


if __name__ == "__main__":
    main()
