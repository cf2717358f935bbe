"""Merged curvature compared with one fit of all rows: rank correlation of scores and LDS after 1 and 8 merges.

    python -m benchmarks.quality.merging TESTBED OUT [--ranks 64 256 --result FOLDER]

OUT is the output of `benchmarks.quality.policies` with the `rebuild` indexes of the methods and the ground truth.
Curvature is fitted to pieces of an index's rows in the order of the corpus, as if the corpus had arrived file by
file. The fits are merged one after another.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.continued import load
from benchmarks.quality.policies import folder_of, interval
from benchmarks.run_record import write_result
from lorif_core.config import StorageConfig
from lorif_core.curvature.merge import merge
from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.scan import scan_blocks
from lorif_core.curvature.woodbury import CurvatureSpec, LayerCurvature
from lorif_core.evaluation.ground_truth import TruthFolder
from lorif_core.evaluation.lds import bootstrap, rank_correlation
from lorif_core.search.index import Index
from lorif_core.search.part_reader import PartReader
from lorif_core.search.queries import read_queries
from lorif_core.search.query_encoder import QueryGradients
from lorif_core.search.scoring import fold_queries, score_rows
from lorif_core.tables.store import Store

_LOCAL = StorageConfig()
_PIECES = {"refit": 1, "1 merge": 2, "8 merges": 9}
_METHODS = ("LoRIF f4 c1, dense query", "LoGRA f8", "quality")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("testbed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subsets", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--methods", nargs="+", default=list(_METHODS))
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    evaluation = load(arguments.testbed.resolve(), out, arguments.subsets, arguments.seeds)
    ids, truth = TruthFolder(str(out), _LOCAL).read(evaluation)
    queries = read_queries(evaluation.queries, _LOCAL)
    result: dict[str, Any] = {}
    for name in arguments.methods:
        index = Index(Store(str(folder_of(out, name) / "rebuild")))
        gradients = index.encode(queries)[-1]
        rows = Rows(index.parts[-1], ids)
        for rank in arguments.ranks:
            scores = {kind: rows.scores(gradients, pieces, rank) for kind, pieces in _PIECES.items()}
            singles, paired = bootstrap(scores, truth, [(kind, "refit") for kind in list(scores)[1:]])
            result[f"{name}, rank {rank}"] = {
                kind: {
                    "spearman": round(float(rank_correlation(scores_QN.T, scores["refit"].T).mean()), 4),
                    "lds": interval(singles[kind]),
                    "minus_refit": interval(paired[kind, "refit"]) if kind != "refit" else None,
                }
                for kind, scores_QN in scores.items()
            }
            print(f"{name}, rank {rank}", json.dumps(result[f"{name}, rank {rank}"]), flush=True)
    if arguments.result:
        write_result(arguments.result / "merging.json", result)


class Rows:
    """All rows of a part, in the order of the given ids."""

    def __init__(self, part: PartReader, ids: Sequence[str]) -> None:
        blocks = list(part.blocks())
        names = [name for block in blocks for name in block.example_ids]
        row_numbers = {name: row for row, name in enumerate(names)}
        order = [row_numbers[name] for name in ids]
        self._codes = torch.cat([block.codes for block in blocks])[order]
        self._scales = torch.cat([block.scales for block in blocks])[order]
        self._layout, self._part = part.layout, part

    def scores(self, gradients: QueryGradients, pieces: int, rank: int) -> np.ndarray:
        """(Q, N) scores with a curvature that was fitted to pieces and merged."""
        spec = CurvatureSpec("woodbury", rank=rank)
        fits = [self._fit(rows, spec) for rows in self._split(pieces)]
        layers = [
            reduce(lambda first, second: merge(first, second, spec), [fit[layer] for fit in fits])
            for layer in range(len(gradients.layers))
        ]
        folded = fold_queries(gradients.layers, layers)
        return score_rows(self._codes, self._scales, self._layout, folded).numpy()

    def _split(self, pieces: int) -> Iterator[slice]:
        """All rows as one piece; or the first half as one piece and the other half in equal pieces."""
        total, first = len(self._codes), len(self._codes) if pieces == 1 else len(self._codes) // 2
        edges = [0, *np.linspace(first, total, pieces).astype(int).tolist()] if pieces > 1 else [0, total]
        yield from (slice(start, stop) for start, stop in pairwise(edges))

    def _fit(self, rows: slice, spec: CurvatureSpec) -> dict[int, LayerCurvature]:
        codes, scales = self._codes[rows], self._scales[rows]
        dims = [slot.layer.dim for slot in self._layout.slots]
        return fit_layers(
            range(len(dims)), dims, len(codes), spec,
            lambda request: scan_blocks([(codes, scales)], self._layout, request),
        )  # fmt: skip


if __name__ == "__main__":
    main()
