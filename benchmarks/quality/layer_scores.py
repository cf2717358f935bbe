"""Exact K-FAC scores of every layer alone, from a dump of `benchmarks.quality.pairs`, with what a rule could use.

    python -m benchmarks.quality.layer_scores DUMP [--scores-only]

Writes DUMP/kfac/NUMBER.npz a layer, resumable. The metric is that of the product: covariances of the examples'
tokens, damped by .01 of the mean eigenvalue, on both sides. The gradients of a sample are also split into halves,
the sums over even and over odd tokens, so that the agreement of halves can be measured; `--scores-only` leaves
that out.

Shapes: R rows, T tokens, I and O sides, N examples, Q queries, P plants, S examples of the sample.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.pairs import Pairs, open_pairs
from lorif_core.gradients.projection import counter_generator
from lorif_core.gradients.roots import EPSILON
from lorif_core.gradients.whitening import second_moment

SAMPLE = 64
_FLOATS = 2**25  # of the gradients that are formed at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--scores-only", action="store_true")
    arguments = parser.parse_args()
    folder: Path = arguments.dump
    torch.set_num_threads(1)
    pairs = open_pairs(folder)
    (folder / "kfac").mkdir(exist_ok=True)
    for number, layer in spread_order(pairs.layers):
        path = folder / "kfac" / f"{number:03d}.npz"
        if not path.exists():
            found: dict[str, Any] = score_layer(pairs, layer, clues=not arguments.scores_only)
            np.savez(path, **found)
            print(layer, flush=True)


@dataclass(frozen=True)
class LayerScores:
    """What one layer says alone.

    Attributes:
        scores: (Q, N) scores.
        plants: (P, N) scores of the noisy copies.
        halves: (2, 2, Q, S) by half of the query (even tokens, odd tokens) and half of the example.
        own: (S, S) products of the even half of one example with the odd half of another.
    """

    scores: np.ndarray
    plants: np.ndarray
    halves: np.ndarray
    own: np.ndarray


def read_scores(folder: Path) -> dict[str, LayerScores]:
    """Scores of the layers of a dump that are finished, by name."""
    names = list(open_pairs(folder).layers)
    found = {}
    for path in sorted((folder / "kfac").glob("*.npz")):
        with np.load(path) as content:
            found[names[int(path.stem)]] = LayerScores(**content)
    return found


def block_of(name: str) -> int:
    """Number of the block of a layer."""
    return int(next(part for part in name.split(".") if part.isdigit()))


def spread_order(layers: Iterable[str]) -> list[tuple[int, str]]:
    """Numbers and names, every third block first, so that an unfinished run covers the depth."""
    return sorted(enumerate(layers), key=lambda item: block_of(item[1]) % 3 != 2)


def sample_of(examples: int) -> list[int]:
    """The examples whose own halves are compared."""
    return sorted(counter_generator(0, "sample").permutation(examples)[:SAMPLE].tolist())


def score_layer(pairs: Pairs, layer: str, *, clues: bool) -> dict[str, np.ndarray]:
    """The fields of `LayerScores`."""
    X = pairs.read(layer, "in", slice(None))
    D = pairs.read(layer, "out", slice(None))
    N, Q = pairs.examples, pairs.queries
    inverses = damped_inverse(X[:N]), damped_inverse(D[:N])
    sample = sample_of(N)
    asked = slice(pairs.query_rows.start, pairs.plant_rows.stop)
    weights = _weights(X[asked], D[asked], inverses)
    blocks = [G.flatten(1) @ weights.T for G in gradients(X[:N], D[:N])]
    scores = torch.cat(blocks).T.numpy()
    if not clues:
        empty = np.zeros((2, 2, Q, 0))
        return {"scores": scores[:Q], "plants": scores[Q:], "halves": empty, "own": np.zeros((0, 0))}
    weights_of_halves = torch.cat(
        [
            _weights(_half(X[rows], h), _half(D[rows], h), inverses)
            for h in (0, 1)
            for rows in (pairs.query_rows, sample)
        ]
    )
    by_half = []
    for half in (0, 1):
        blocks = [
            G.flatten(1) @ weights_of_halves.T for G in gradients(_half(X[sample], half), _half(D[sample], half))
        ]
        by_half.append(torch.cat(blocks).T.numpy())
    stride = Q + len(sample)
    halves = [[columns[stride * h : stride * h + Q] for columns in by_half] for h in (0, 1)]
    return {"scores": scores[:Q], "plants": scores[Q:], "halves": np.array(halves), "own": by_half[1][Q:stride]}


def _weights(
    X_RTI: torch.Tensor, D_RTO: torch.Tensor, inverses: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """(R, I O) gradients with the inverses on both sides."""
    return ((X_RTI @ inverses[0]).transpose(1, 2) @ (D_RTO @ inverses[1])).flatten(1)


def damped_inverse(x_NTd: torch.Tensor) -> torch.Tensor:
    """(d, d) float32 inverse of the damped covariance of all tokens."""
    covariance = second_moment(x_NTd.flatten(0, 1)) / (x_NTd.shape[0] * x_NTd.shape[1])
    covariance.diagonal().add_(EPSILON * covariance.diagonal().mean())
    return torch.cholesky_inverse(torch.linalg.cholesky(covariance)).float()


def gradients(X_RTI: torch.Tensor, D_RTO: torch.Tensor) -> Iterator[torch.Tensor]:
    """Blocks of G = X^T D (rows, I, O), in order."""
    block = max(1, _FLOATS // (X_RTI.shape[2] * D_RTO.shape[2]))
    for start in range(0, len(X_RTI), block):
        yield X_RTI[start : start + block].transpose(1, 2) @ D_RTO[start : start + block]


def _half(x_RTd: torch.Tensor, half: int) -> torch.Tensor:
    return x_RTd[:, half::2]


if __name__ == "__main__":
    main()
