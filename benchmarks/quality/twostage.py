"""What a coarse look that reads a tenth of the bytes would find: recall against the exact scan, by bytes read.

    python -m benchmarks.quality.twostage EVALUATION OUT [--method balanced --index INDEX --result FILE]

OUT holds what `lorif evaluate lds` has left there, as for `benchmarks.quality.quick`; INDEX is an index of the
method that is there already, else one is built in a temporary folder. The coarse code of a row is some of its own
columns, a term of a layer each, with their scales: scores of one layer go with the whole score far more than a
projection of as many bytes does, since whitened gradients have a flat spectrum. All rows are ranked by it, and of
the first so many the whole code is read and scored exactly. Three ways to choose and to compress:

    energy    the columns with the most energy a byte
    learned   those that bring the correlation with the exact scores up most a byte, for other queries (the even
              ones choose for the odd ones, on which all three are measured)
    random    random signs of the whole gradient, packed, as many bits as the bytes have; simulated, by what such
              a projection is off by: sqrt(pi / 2 bits) |query| |row|
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.quick import built
from lorif_core.config import StorageConfig
from lorif_core.evaluation.config import load_evaluation
from lorif_core.evaluation.ground_truth import TruthFolder
from lorif_core.evaluation.recall import recall_at
from lorif_core.evaluation.search_recall import search_recall
from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.index import Index, open_index
from lorif_core.search.part_reader import PartReader
from lorif_core.search.queries import read_queries
from lorif_core.search.scoring import FoldedQueries
from tasks.cluster import cluster

_COLUMNS = range(1, 7)
_CANDIDATES = (50, 80, 100, 150, 200, 400)
_TOP_K = (10, 100)
_BYTES_PER_SCALE = 2

Column = tuple[int, int]  # of a layer, a term


class Columns:
    """Scores of every term of every layer (layers, terms, Q, N), which add up to the exact ones.

    Args:
        part: factors, levels packed.
        folded: the queries.
    """

    def __init__(self, part: PartReader, folded: FoldedQueries) -> None:
        blocks = list(part.blocks(memory_gb=0.05))
        found = [_by_column(part.layout, folded, block.codes, block.scales) for block in blocks]
        self.scores = np.concatenate(found, axis=3).astype(np.float64)
        self.exact_QN = self.scores.sum(axis=(0, 1))
        self.row_bytes = part.layout.bytes_per_example
        sizes = [(slot.packed.stop - slot.packed.start) / part.layout.terms for slot in part.layout.slots]
        self.bytes = np.array(sizes) + _BYTES_PER_SCALE
        scales = torch.cat([block.scales for block in blocks]).view(-1, len(sizes), part.layout.terms)
        dims = torch.tensor([slot.layer.dim for slot in part.layout.slots])
        energy_NLc = scales.double().square() * dims[:, None]
        self.energy_a_byte = energy_NLc.mean(dim=0).numpy() / self.bytes[:, None]
        self.sizes_N = energy_NLc.sum(dim=(1, 2)).sqrt().numpy()
        self.query_sizes_Q = torch.stack([w.square().sum(dim=1) for w in folded.weights]).sum(dim=0).sqrt().numpy()

    def all(self) -> list[Column]:
        """Every column."""
        return list(np.ndindex(*self.scores.shape[:2]))

    def read(self, columns: Sequence[Column]) -> float:
        """Bytes of a row."""
        return sum(self.bytes[layer] for layer, _ in columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", default="balanced")
    parser.add_argument("--index", help="of the method, made from OUT's checkpoint")
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    evaluation = load_evaluation(arguments.evaluation)
    queries = read_queries(evaluation.queries, StorageConfig())
    if arguments.index:
        found = curve(open_index(arguments.index), queries)
    else:
        model = TruthFolder(str(arguments.out.resolve()), StorageConfig()).model
        with cluster(evaluation.base().compute), tempfile.TemporaryDirectory(prefix="lorif-twostage-") as name:
            found = curve(built(evaluation, arguments.method, f"{name}/index", model), queries)
    result = {"method": arguments.method, **found}
    print(json.dumps(result, indent=1))
    if arguments.result:
        arguments.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def curve(index: Index, queries: Sequence[Any]) -> dict[str, Any]:
    """Recall of every way, number of columns and of candidates, on the odd queries; `product`: of its searches."""
    (part,), (folded,) = index.parts, index.fold(index.encode(queries))
    columns = Columns(part, folded)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    by_energy = sorted(columns.all(), key=lambda column: -columns.energy_a_byte[column])
    learned = greedy(columns, even, max(_COLUMNS))
    rows = []
    for count in _COLUMNS:
        for name, order in (("energy", by_energy), ("learned", learned)):
            chosen = order[:count]
            coarse_QN = sum(columns.scores[column][odd] for column in chosen)
            rows += measured(name, columns, coarse_QN, odd, columns.read(chosen))
        size = columns.read(learned[:count])
        off = math.sqrt(math.pi / 2 / (8 * size)) * np.outer(columns.query_sizes_Q, columns.sizes_N)
        coarse_QN = columns.exact_QN + off * np.random.default_rng(count).standard_normal(off.shape)
        rows += measured("random", columns, coarse_QN[odd], odd, size)
    names = [slot.layer.name for slot in part.layout.slots]
    return {
        "rows": columns.exact_QN.shape[1],
        "queries": len(columns.exact_QN[odd]),
        "bytes_per_row": columns.row_bytes,
        "energy": [f"{names[layer]} term {term}" for layer, term in by_energy[: max(_COLUMNS)]],
        "learned": [f"{names[layer]} term {term}" for layer, term in learned],
        "curve": rows,
        "product": search_recall(index, [folded]),
    }


def measured(
    name: str, columns: Columns, coarse_QN: np.ndarray, chosen: slice, size: float
) -> list[dict[str, Any]]:
    """Recall by number of candidates, each side with its own."""
    exact_QN, rows = columns.exact_QN[chosen], []
    for candidates in _CANDIDATES:
        share = size / columns.row_bytes + candidates / exact_QN.shape[1]
        row: dict[str, Any] = {
            "columns": name,
            "bytes": round(size, 1),
            "candidates": candidates,
            "share_of_bytes": round(share, 4),
        }
        for side, sign in (("proponents", -1), ("opponents", 1)):
            looked = np.argsort(sign * coarse_QN, axis=1)[:, :candidates].tolist()
            for k in _TOP_K:
                if k <= candidates:
                    wanted = np.argsort(sign * exact_QN, axis=1)[:, :k].tolist()
                    row[f"{side}@{k}"] = round(float(recall_at(looked, wanted).mean()), 4)
        rows.append(row)
    return rows


def greedy(columns: Columns, chosen: slice, count: int) -> list[Column]:
    """Column by column the one that brings the correlation with the exact scores up most a byte."""
    exact, order, found = columns.exact_QN[chosen], [], np.zeros_like(columns.exact_QN[chosen])
    for _ in range(count):
        before = correlation(found, exact) if order else 0.0
        left = [column for column in columns.all() if column not in order]
        gains = {
            column: (correlation(found + columns.scores[column][chosen], exact) - before)
            / columns.bytes[column[0]]
            for column in left
        }
        order.append(max(gains, key=lambda column: gains[column]))
        found = found + columns.scores[order[-1]][chosen]
    return order


def correlation(a_QN: np.ndarray, b_QN: np.ndarray) -> float:
    """Mean over queries."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a_QN, b_QN))
    return float(((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).mean())


def _by_column(
    layout: CodeLayout, folded: FoldedQueries, codes: torch.Tensor, scales_BS: torch.Tensor
) -> np.ndarray:
    """(layers, terms, Q, B) of a block."""
    found = np.zeros((len(layout.slots), layout.terms, folded.count, len(codes)), np.float32)
    for number, slot in enumerate(layout.slots):
        u, v = layout.factors(codes, slot)
        scales_Bc = scales_BS[:, slot.scales]
        for query, weight_D in enumerate(folded.weights[number]):
            left = torch.einsum("bic,ij->bjc", u, weight_D.view(slot.layer.d1, slot.layer.d2))
            found[number, :, query] = ((left * v).sum(dim=1) * scales_Bc).T.numpy()
    return found


if __name__ == "__main__":
    main()
