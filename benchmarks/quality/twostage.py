"""Recall of two-stage searches with coarse codes of about a tenth of the bytes, by bytes read.

    python -m benchmarks.quality.twostage EVALUATION OUT [--method balanced --index INDEX --result FILE]

OUT is the output of `lorif evaluate lds`, as for `benchmarks.quality.prefilter`. INDEX is an existing index of the
method; without it, an index is built in a temporary folder. The coarse code of a row consists of some of its own
columns with their scales; a column is one term of one layer. The scores of one layer correlate with the full score
far more than a projection of the same size does, because whitened gradients have a flat spectrum. The coarse code
ranks all rows; the full codes of the first candidates are then read and scored exactly. The benchmark compares
three coarse codes:

    energy    the columns with the most energy per byte
    learned   the columns that raise the correlation with the exact scores most per byte; they are chosen on the
              even queries, and all three codes are measured on the odd queries
    random    packed signs of random projections of the full gradient, as many bits as fit into the bytes;
              simulated through the error of such a projection, sqrt(pi / 2 bits) |query| |row|
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

from benchmarks.quality.prefilter import build_index
from benchmarks.run_record import write_result
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

Column = tuple[int, int]  # (layer, term)


class Columns:
    """Scores of every term of every layer (layers, terms, Q, N), which add up to the exact scores.

    Args:
        part: rows whose codes are factors with packed levels.
        folded: the queries.
    """

    def __init__(self, part: PartReader, folded: FoldedQueries) -> None:
        blocks = list(part.blocks(memory_gb=0.05))
        scores = [_column_scores(part.layout, folded, block.codes, block.scales) for block in blocks]
        self.scores = np.concatenate(scores, axis=3).astype(np.float64)
        self.exact_QN = self.scores.sum(axis=(0, 1))
        self.row_bytes = part.layout.bytes_per_example
        terms = _terms(part.layout)
        sizes = [(slot.packed.stop - slot.packed.start) / terms for slot in part.layout.slots]
        self.bytes = np.array(sizes) + _BYTES_PER_SCALE
        scales = torch.cat([block.scales for block in blocks]).view(-1, len(sizes), terms)
        dims = torch.tensor([slot.layer.dim for slot in part.layout.slots])
        energy_NLc = scales.double().square() * dims[:, None]
        self.energy_per_byte = energy_NLc.mean(dim=0).numpy() / self.bytes[:, None]
        self.sizes_N = energy_NLc.sum(dim=(1, 2)).sqrt().numpy()
        self.query_sizes_Q = torch.stack([w.square().sum(dim=1) for w in folded.weights]).sum(dim=0).sqrt().numpy()

    def all(self) -> list[Column]:
        """Every column."""
        return list(np.ndindex(*self.scores.shape[:2]))

    def bytes_of(self, columns: Sequence[Column]) -> float:
        """Bytes of these columns of one row."""
        return sum(self.bytes[layer] for layer, _ in columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", default="balanced")
    parser.add_argument("--index", help="existing index of the method at OUT's checkpoint")
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    evaluation = load_evaluation(arguments.evaluation)
    queries = read_queries(evaluation.queries, StorageConfig())
    if arguments.index:
        curves = curve(open_index(arguments.index), queries)
    else:
        model = TruthFolder(str(arguments.out.resolve()), StorageConfig()).model
        with cluster(evaluation.base().compute), tempfile.TemporaryDirectory(prefix="lorif-twostage-") as name:
            curves = curve(build_index(evaluation, arguments.method, f"{name}/index", model), queries)
    result = {"method": arguments.method, **curves}
    print(json.dumps(result, indent=1))
    if arguments.result:
        write_result(arguments.result, result)


def curve(index: Index, queries: Sequence[Any]) -> dict[str, Any]:
    """Recall on the odd queries by coarse code, number of columns and number of candidates.

    `product` is the recall of the product's own searches.
    """
    (part,), (folded,) = index.parts, index.fold(index.encode(queries))
    columns = Columns(part, folded)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    by_energy = sorted(columns.all(), key=lambda column: -columns.energy_per_byte[column])
    learned = greedy(columns, even, max(_COLUMNS))
    rows = []
    for count in _COLUMNS:
        for name, order in (("energy", by_energy), ("learned", learned)):
            coarse_QN = sum(columns.scores[column][odd] for column in order[:count])
            rows += recall_rows(name, columns, coarse_QN, odd, columns.bytes_of(order[:count]))
        size = columns.bytes_of(learned[:count])
        error_QN = math.sqrt(math.pi / 2 / (8 * size)) * np.outer(columns.query_sizes_Q, columns.sizes_N)
        coarse_QN = columns.exact_QN + error_QN * np.random.default_rng(count).standard_normal(error_QN.shape)
        rows += recall_rows("random", columns, coarse_QN[odd], odd, size)
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


def recall_rows(
    name: str, columns: Columns, coarse_QN: np.ndarray, queries: slice, size: float
) -> list[dict[str, Any]]:
    """Recall by number of candidates; each side has its own candidates."""
    exact_QN, rows = columns.exact_QN[queries], []
    for candidates in _CANDIDATES:
        share = size / columns.row_bytes + candidates / exact_QN.shape[1]
        row: dict[str, Any] = {
            "columns": name,
            "bytes": round(size, 1),
            "candidates": candidates,
            "share_of_bytes": round(share, 4),
        }
        for side, sign in (("proponents", -1), ("opponents", 1)):
            retrieved = np.argsort(sign * coarse_QN, axis=1)[:, :candidates].tolist()
            for k in _TOP_K:
                if k <= candidates:
                    relevant = np.argsort(sign * exact_QN, axis=1)[:, :k].tolist()
                    row[f"{side}@{k}"] = round(float(recall_at(retrieved, relevant).mean()), 4)
        rows.append(row)
    return rows


def greedy(columns: Columns, queries: slice, count: int) -> list[Column]:
    """Choose columns one by one; each raises the correlation with the exact scores most per byte."""
    exact_QN = columns.exact_QN[queries]
    order: list[Column] = []
    coarse_QN = np.zeros_like(exact_QN)
    for _ in range(count):
        before = correlation(coarse_QN, exact_QN) if order else 0.0
        gains = {
            column: (correlation(coarse_QN + columns.scores[column][queries], exact_QN) - before)
            / columns.bytes[column[0]]
            for column in columns.all()
            if column not in order
        }
        order.append(max(gains, key=lambda column: gains[column]))
        coarse_QN = coarse_QN + columns.scores[order[-1]][queries]
    return order


def correlation(a_QN: np.ndarray, b_QN: np.ndarray) -> float:
    """Pearson correlation of each query's scores; mean over queries."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a_QN, b_QN))
    return float(((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).mean())


def _terms(layout: CodeLayout) -> int:
    """The number of terms of every layer; the testbeds have no layer with a side below the rank."""
    (terms,) = {slot.terms for slot in layout.slots}
    return terms


def _column_scores(
    layout: CodeLayout, folded: FoldedQueries, codes: torch.Tensor, scales_BS: torch.Tensor
) -> np.ndarray:
    """(layers, terms, Q, B) scores of the columns of a block."""
    scores = np.zeros((len(layout.slots), _terms(layout), folded.count, len(codes)), np.float32)
    for number, slot in enumerate(layout.slots):
        u, v = layout.factors(codes, slot)
        scales_Bc = scales_BS[:, slot.scales]
        for query, weight_D in enumerate(folded.weights[number]):
            left = torch.einsum("bic,ij->bjc", u, weight_D.view(slot.layer.d1, slot.layer.d2))
            scores[number, :, query] = ((left * v).sum(dim=1) * scales_Bc).T.numpy()
    return scores


if __name__ == "__main__":
    main()
