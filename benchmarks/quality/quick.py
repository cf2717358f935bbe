"""What the quick look at all rows costs in LDS, and which of the strongest rows it finds.

    python -m benchmarks.quality.quick EVALUATION OUT [--methods balanced compact quality --result FILE]

OUT holds what `lorif evaluate lds` has left there: the truth and the checkpoint. Every method's index is built
anew, in a temporary folder. LDS of exact and of quick scores of all rows; recall of the search, block after block
of 256 rows, against exact scores. `alone` is the quick look of a query on its own, `batch` that of all together.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.build import build
from lorif_core.config import StorageConfig
from lorif_core.evaluation.config import EvaluationConfig, load_evaluation
from lorif_core.evaluation.ground_truth import TruthFolder
from lorif_core.evaluation.lds import Truth, lds, rank_correlation
from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.index import Index
from lorif_core.search.prefilter import quick_scorer
from lorif_core.search.queries import read_queries
from lorif_core.search.scoring import score_rows
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import Search, Sought
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
    with cluster(evaluation.base().compute), tempfile.TemporaryDirectory(prefix="lorif-quick-") as name:
        for method in arguments.methods:
            index = built(evaluation, method, f"{name}/{method}", folder.model)
            result[method] = measure(index, evaluation, ids, truth)
            print(method, json.dumps(result[method]), flush=True)
    if arguments.result:
        arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def built(evaluation: EvaluationConfig, method: str, uri: str, model: str) -> Index:
    """The method's index of the evaluation's corpus."""
    config = evaluation.method(method, uri, model)
    generation = build(config)
    return Index(Store(config.index, config.storage), generation)


def measure(index: Index, evaluation: EvaluationConfig, ids: list[str], truth: Truth) -> dict[str, Any]:
    """LDS, rank correlation, and recall."""
    (part,) = index.parts
    (folded,) = index.fold(index.encode(read_queries(evaluation.queries, StorageConfig())))
    blocks = list(part.blocks())
    names = [name for block in blocks for name in block.example_ids]
    codes, scales = torch.cat([block.codes for block in blocks]), torch.cat([block.scales for block in blocks])
    exact = score_rows(codes, scales, part.layout, folded).numpy()
    places = {name: place for place, name in enumerate(names)}
    order = [places[name] for name in ids]
    found: dict[str, Any] = {
        "rows": len(names),
        "queries": folded.count,
        "lds": round(float(lds(exact[:, order], truth).mean()), 4),
    }
    wanted = {k: searched(part.layout, Sought(folded), k, codes, scales, names) for k in _TOP_K}
    for kind, together in (("alone", 1), ("batch", folded.count)):
        parts = [folded.some(start, start + together) for start in range(0, folded.count, together)]
        ready = [part.sought(asked) for asked in parts]
        if any(one.quick is None for one in ready):
            raise SystemExit(f"{len(names)} rows of this code have no quick look for {together} queries")
        quick = torch.cat([quick_scorer(part.layout, one.quick)(codes, scales) for one in ready if one.quick])
        found[kind] = {
            "look": type(ready[0].quick).__name__,
            "lds": round(float(lds(quick.numpy()[:, order], truth).mean()), 4),
            "spearman": round(float(rank_correlation(quick.numpy().T, exact.T).mean()), 5),
        }
        for k in _TOP_K:
            best = [top for one in ready for top in searched(part.layout, one, k, codes, scales, names)]
            found[kind][f"recall@{k}"] = {
                side: recall(best, wanted[k], side) for side in ("proponents", "opponents")
            }
    return found


def searched(
    layout: CodeLayout, asked: Sought, k: int, codes: torch.Tensor, scales: torch.Tensor, names: list[str]
) -> list[TopK]:
    """What a search keeps, block after block."""
    search = Search(layout, asked, k)
    for start in range(0, len(names), _BLOCK):
        some = slice(start, start + _BLOCK)
        search.update(codes[some], scales[some], names[some])
    return search.best


def recall(found: list[TopK], wanted: list[TopK], side: str) -> float:
    """Share of the strongest rows, ties by id, that are found; mean over queries."""
    ours, theirs = ([{hit.example_id for hit in getattr(kept, side)} for kept in best] for best in (found, wanted))
    return round(float(np.mean([len(a & b) / len(b) for a, b in zip(ours, theirs, strict=True)])), 4)


if __name__ == "__main__":
    main()
