"""Attempts at more LDS for the same bytes: other codes of folded, whitened gradients, from a dump of
`benchmarks.quality.pairs`, each at about the bytes of `cut`.

    python -m benchmarks.quality.moonshots DUMP --layers REGEX --ranks 8 16 [--attempts NAME ...]

Scores (Q, N), summed over the layers, go to DUMP/moonshots with the mean bytes of an example. `ATTEMPTS` lists the
attempts; `benchmarks.quality.frontier` reports them.

Shapes: B examples, h1 and h2 folded sides, c rank, Q queries, N examples.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.folded import FoldedLayer, cut, decode, unbiased
from benchmarks.quality.pairs import Pairs, open_pairs
from benchmarks.quality.vector_codes import codebook_cut, two_bit_cut

LayerMethod = Callable[[FoldedLayer, int], tuple[np.ndarray, float]]
"""Scores (Q, N) of one layer at about the bytes of `cut` with a rank, and the mean bytes of an example."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--layers", required=True)
    parser.add_argument("--ranks", nargs="+", type=int, required=True)
    parser.add_argument("--attempts", nargs="+", default=list(ATTEMPTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = open_pairs(arguments.dump)
    names = [name for name in pairs.layers if re.search(arguments.layers, name)]
    (arguments.dump / "moonshots").mkdir(exist_ok=True)
    for attempt in arguments.attempts:
        for rank in arguments.ranks:
            path = arguments.dump / "moonshots" / f"{attempt}-{rank}-{len(names)}.npz"
            if not path.exists():
                scores, size = ATTEMPTS[attempt](pairs, names, rank)
                np.savez(path, scores=scores, bytes=size)
                print(attempt, rank, round(size), flush=True)


Attempt = Callable[[Pairs, Sequence[str], int], tuple[np.ndarray, float]]


def by_layer(method: LayerMethod, fold: int = 1) -> Attempt:
    """An attempt that codes every layer alone."""

    def attempt(pairs: Pairs, names: Sequence[str], rank: int) -> tuple[np.ndarray, float]:
        found = [method(FoldedLayer(pairs, name, fold), rank) for name in names]
        return np.sum([scores for scores, _ in found], axis=0), sum(size for _, size in found)

    return attempt


def scored(layer: FoldedLayer, coder: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Scores (Q, N) of what `coder` decodes to, as it is."""
    queries = layer.queries().flatten(1)
    return torch.cat([queries @ coder(G).flatten(1).T for G in layer.examples()], dim=1).numpy()


def term_bytes(layer: FoldedLayer) -> float:
    """Bytes of one term of signs."""
    return sum(layer.shape) / 8 + 2


def plain(layer: FoldedLayer, rank: int) -> tuple[np.ndarray, float]:
    """The code to beat: one round, one sweep."""
    return scored(layer, lambda G: unbiased(G, decode(*cut(G, rank)))), rank * term_bytes(layer)


def more_sweeps(layer: FoldedLayer, rank: int) -> tuple[np.ndarray, float]:
    """Four sweeps instead of one."""
    return scored(layer, lambda G: unbiased(G, decode(*cut(G, rank, sweeps=4)))), rank * term_bytes(layer)


def residual(layer: FoldedLayer, rank: int) -> tuple[np.ndarray, float]:
    """Half of the terms, and then half for what these left."""

    def code(G: torch.Tensor) -> torch.Tensor:
        first = decode(*cut(G, rank // 2))
        return unbiased(G, first + decode(*cut(G - first, rank - rank // 2)))

    return scored(layer, code), rank * term_bytes(layer)


def shrunk(power: float) -> LayerMethod:
    """Scales between least squares (0) and unbiased (1)."""

    def method(layer: FoldedLayer, rank: int) -> tuple[np.ndarray, float]:
        def code(G: torch.Tensor) -> torch.Tensor:
            decoded = decode(*cut(G, rank))
            share = (G * decoded).sum(dim=(1, 2)) / G.square().sum(dim=(1, 2)).clamp_min(1e-30)
            return decoded / share.clamp_min(1e-3)[:, None, None] ** power

        return scored(layer, code), rank * term_bytes(layer)

    return method


def rotated(layer: FoldedLayer, rank: int) -> tuple[np.ndarray, float]:
    """Random rotations of both sides before the signs are taken."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(h, h, generator=generator)).Q for h in layer.shape)

    def code(G: torch.Tensor) -> torch.Tensor:
        turned = left @ G @ right
        return left.T @ unbiased(turned, decode(*cut(turned, rank))) @ right.T

    return scored(layer, code), rank * term_bytes(layer)


def two_bits(layer: FoldedLayer, rank: int) -> tuple[np.ndarray, float]:
    """Half of the terms, with four Lloyd-Max levels."""
    terms = max(1, rank // 2)
    scores = scored(layer, lambda G: unbiased(G, decode(*two_bit_cut(G, terms))))
    return scores, terms * (2 * sum(layer.shape) / 8 + 2)


def codebook(size_bits: int) -> LayerMethod:
    """Factors in groups of 8 entries, each one of 2^bits codewords that were trained on half of the examples."""

    def method(layer: FoldedLayer, rank: int) -> tuple[np.ndarray, float]:
        terms = rank * 8 // size_bits
        coder = codebook_cut(layer, terms, size_bits)
        size = terms * (sum(layer.shape) / 8 * size_bits / 8 + 2)
        return scored(layer, lambda G: unbiased(G, decode(*coder(G)))), size

    return method


def by_norm(power: float) -> Attempt:
    """Ranks by example and layer, in proportion to a power of the gradient's norm, at a constant sum of bytes."""

    def attempt(pairs: Pairs, names: Sequence[str], rank: int) -> tuple[np.ndarray, float]:
        layers = [FoldedLayer(pairs, name) for name in names]
        norms = torch.stack([torch.cat([G.norm(dim=(1, 2)) for G in layer.examples()]) for layer in layers])
        weights = norms**power
        # an example's weight is that of its layers together, and layers share it
        ranks = (rank * weights / weights.mean()).round().clamp(1, 4 * rank).int()
        total, size = 0.0, 0.0
        for layer, ranks_N in zip(layers, ranks, strict=True):
            position, blocks, queries = 0, [], layer.queries().flatten(1)
            for G in layer.examples():
                own = ranks_N[position : position + len(G)]
                decoded = torch.empty_like(G)
                for value in own.unique():
                    rows = own == value
                    decoded[rows] = unbiased(G[rows], decode(*cut(G[rows], int(value))))
                blocks.append(queries @ decoded.flatten(1).T)
                position += len(G)
            total = total + torch.cat(blocks, dim=1).numpy()
            size += float(ranks_N.float().mean()) * term_bytes(layer) + 1
        return np.asarray(total), size

    return attempt


def folded_more(fold: int) -> Attempt:
    """Sides shorter by a factor, and as many times more terms."""
    inner = by_layer(plain, fold)
    return lambda pairs, names, rank: inner(pairs, names, rank * fold)


ATTEMPTS: dict[str, Attempt] = {
    "plain": by_layer(plain),
    "more-sweeps": by_layer(more_sweeps),
    "residual": by_layer(residual),
    "shrunk-0": by_layer(shrunk(0.0)),
    "shrunk-half": by_layer(shrunk(0.5)),
    "rotated": by_layer(rotated),
    "two-bits": by_layer(two_bits),
    "codebook-8": by_layer(codebook(8)),
    "codebook-4": by_layer(codebook(4)),
    "by-norm": by_norm(1.0),
    "by-norm-squared": by_norm(2.0),
    "folded-2": folded_more(2),
}


if __name__ == "__main__":
    main()
