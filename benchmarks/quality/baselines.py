"""Scores of what codes are compared with, one layer at a time, from a dump of `benchmarks.quality.pairs`.

    python -m benchmarks.quality.baselines DUMP --methods old4 lograf4 lograf8 dot [--layers REGEX]

`oldC` is the preset of version 1 with cut C: random signs to half of both sides, whitened, 16 rounds of power
iteration and three sweeps. `lografF` is LoGRA with both sides divided by F: random projections, and the exact
curvature of the projected gradients layer by layer with the product's damping. `dot` is the plain gradient dot
product.
Scores (Q, N) go to DUMP/codes as those of `benchmarks.quality.folded`.

Shapes: B examples, Q queries, N examples of the dump, d1 and d2 projected sides.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.folded import decode, swept, unbiased
from benchmarks.quality.layer_scores import gradients, spread_order
from benchmarks.quality.pairs import Pairs, open_pairs
from lorif_core.gradients.low_rank import low_rank_factors
from lorif_core.gradients.projection import rademacher_signs
from lorif_core.gradients.roots import inverse_root
from lorif_core.gradients.whitening import second_moment
from lorif_core.spec import projected_size

_BLOCK = 32
_SWEEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--layers", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = open_pairs(arguments.dump)
    (arguments.dump / "codes").mkdir(exist_ok=True)
    for number, layer in spread_order(pairs.layers):
        for method in arguments.methods:
            path = baseline_path(arguments.dump, number, method)
            if re.search(arguments.layers, layer) and not path.exists():
                np.save(path, _function(method)(pairs, layer))


def baseline_path(dump: Path, number: int, method: str) -> Path:
    """File of a layer's scores."""
    return dump / "codes" / f"{number:03d}-{method}.npy"


def _function(method: str) -> Callable[[Pairs, str], np.ndarray]:
    if method == "dot":
        return dot
    if method.startswith("old"):
        return lambda pairs, layer: old_preset(pairs, layer, int(method.removeprefix("old")))
    return lambda pairs, layer: logra(pairs, layer, int(method.removeprefix("lograf")))


def dot(pairs: Pairs, layer: str) -> np.ndarray:
    """Gradient dot products."""
    x, d = (pairs.read(layer, side, slice(None)) for side in ("in", "out"))
    queries = (x[pairs.query_rows].transpose(1, 2) @ d[pairs.query_rows]).flatten(1)
    blocks = [queries @ G.flatten(1).T for G in gradients(x[: pairs.examples], d[: pairs.examples])]
    return torch.cat(blocks, dim=1).numpy()


def old_preset(pairs: Pairs, layer: str, rank: int) -> np.ndarray:
    """Factor 2, whitened, cut."""
    N = pairs.examples
    sides = []
    for side in ("in", "out"):
        projected = _projected(pairs, layer, side, 2)
        tokens = projected[:N].flatten(0, 1)
        sides.append(projected @ inverse_root(second_moment(tokens) / len(tokens)).float())
    x, d = sides
    queries = (x[pairs.query_rows].transpose(1, 2) @ d[pairs.query_rows]).flatten(1)
    blocks = []
    for start in range(0, N, _BLOCK):
        A, E = x[start : min(start + _BLOCK, N)], d[start : min(start + _BLOCK, N)]
        G = A.transpose(1, 2) @ E
        decoded = unbiased(G, decode(*swept(G, *low_rank_factors(A, E, rank), _SWEEPS)))
        blocks.append(queries @ decoded.flatten(1).T)
    return torch.cat(blocks, dim=1).numpy()


def logra(pairs: Pairs, layer: str, factor: int) -> np.ndarray:
    """LoGRA; (G G^T + lambda)^-1 of the rows' Gram matrix equals the curvature of all directions of the rows."""
    x, d = (_projected(pairs, layer, side, factor) for side in ("in", "out"))
    stop = pairs.query_rows.stop
    rows = torch.cat([G.flatten(1) for G in gradients(x[:stop], d[:stop])])
    N = pairs.examples
    gram = (rows[:N] @ rows[:N].T).double()
    damping = 0.5 * float(gram.diagonal().sum()) / min(N, rows.shape[1])
    gram.diagonal().add_(damping)
    cross = (rows[N:] @ rows[:N].T).double()
    return torch.linalg.solve(gram, cross.T).T.float().numpy()


def _projected(pairs: Pairs, layer: str, side: str, factor: int) -> torch.Tensor:
    values = pairs.read(layer, side, slice(None))
    size = projected_size(values.shape[2], factor)
    owner = layer.rpartition(".")[0] if side == "in" else layer
    key = f"{side}/{owner}/{values.shape[2]}x{size}"
    matrix = torch.from_numpy(rademacher_signs(values.shape[2], size, 0, key)).float()
    return values @ matrix * size**-0.5


if __name__ == "__main__":
    main()
