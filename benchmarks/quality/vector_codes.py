"""Other factors than signs for `benchmarks.quality.moonshots`: four levels, and groups of entries from a codebook.

Both begin as `cut` does, with one round of the range finder and the rotation, and refine by one sweep: every
column in turn becomes the quantised best column given the others.

Shapes: B examples, h1 and h2 sides, c rank, K codewords, g entries of a group.
"""

from collections.abc import Callable

import torch

from benchmarks.quality.folded import FoldedLayer, joint_scales, leading_factors

_GROUP = 8
_LLOYD_MAX = (0.4528, 1.5104, 0.9816)  # two levels and the threshold of a unit normal variable
_TRAINED_ON = 32768
_KMEANS_ROUNDS = 12

Quantise = Callable[[torch.Tensor], torch.Tensor]
"""Columns (B, n) to their nearest stored columns up to a scale."""
Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def two_bit_cut(G: torch.Tensor, rank: int) -> Factors:
    """Factors with four levels."""
    return _alternating(G, rank, _two_bits, _two_bits)


def codebook_cut(layer: FoldedLayer, rank: int, bits: int) -> Callable[[torch.Tensor], Factors]:
    """A coder with codebooks for both sides, trained on the factors of the first half of the examples."""
    left, right, seen = [], [], 0
    for G in layer.examples():
        U, V = _start(G, rank)
        left.append(_groups(U))
        right.append(_groups(V))
        seen += len(left[-1])
        if seen >= _TRAINED_ON:
            break
    books = [_kmeans(torch.cat(groups)[:_TRAINED_ON], 2**bits) for groups in (left, right)]
    return lambda G: _alternating(G, rank, _nearest(books[0]), _nearest(books[1]))


def _start(G: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    U, V = leading_factors(G, rank)
    return _unit(U), _unit(V)


def _alternating(G: torch.Tensor, rank: int, left: Quantise, right: Quantise) -> Factors:
    U, V = _start(G, rank)
    U, V = _columns(U, left), _columns(V, right)
    product = G @ V
    scales = joint_scales(product, U, V)
    U = _sweep(product, U, V, scales, left)
    product = G.transpose(1, 2) @ U
    scales = joint_scales(product, V, U)
    V = _sweep(product, V, U, scales, right)
    return U, V, joint_scales(G @ V, U, V)


def _sweep(
    product: torch.Tensor, x: torch.Tensor, other: torch.Tensor, scales: torch.Tensor, quantise: Quantise
) -> torch.Tensor:
    x = x.clone()
    gram = other.transpose(1, 2) @ other
    overlap = scales[:, :, None] * gram
    for k in range(x.shape[2]):
        wanted = product[:, :, k] - (x @ overlap[:, :, k : k + 1])[:, :, 0] + x[:, :, k] * overlap[:, k, k : k + 1]
        flip = torch.where(scales[:, k : k + 1] < 0, -1.0, 1.0)
        x[:, :, k] = quantise(_unit((wanted * flip)[:, :, None])[:, :, 0])
    return x


def _columns(x: torch.Tensor, quantise: Quantise) -> torch.Tensor:
    return torch.stack([quantise(x[:, :, k]) for k in range(x.shape[2])], dim=2)


def _unit(x_Bnc: torch.Tensor) -> torch.Tensor:
    """Columns with a mean square of one."""
    return x_Bnc / x_Bnc.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-30)


def _two_bits(x_Bn: torch.Tensor) -> torch.Tensor:
    low, high, threshold = _LLOYD_MAX
    return torch.where(x_Bn.abs() < threshold, low, high) * torch.where(x_Bn < 0, -1.0, 1.0)


def _groups(x_Bnc: torch.Tensor) -> torch.Tensor:
    return x_Bnc.transpose(1, 2).reshape(-1, _GROUP)


def _nearest(book_Kg: torch.Tensor) -> Quantise:
    bias = book_Kg.square().sum(dim=1) / 2

    def quantise(x_Bn: torch.Tensor) -> torch.Tensor:
        groups = x_Bn.reshape(-1, _GROUP)
        return book_Kg[(groups @ book_Kg.T - bias).argmax(dim=1)].view(x_Bn.shape)

    return quantise


def _kmeans(x_Mg: torch.Tensor, count: int) -> torch.Tensor:
    """(K, g) codewords."""
    generator = torch.Generator().manual_seed(0)
    book = x_Mg[torch.randperm(len(x_Mg), generator=generator)[:count]].clone()
    for _ in range(_KMEANS_ROUNDS):
        nearest = (x_Mg @ book.T - book.square().sum(dim=1) / 2).argmax(dim=1)
        sums = torch.zeros_like(book).index_add_(0, nearest, x_Mg)
        counts = torch.bincount(nearest, minlength=count)
        book = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], book)
    return book
