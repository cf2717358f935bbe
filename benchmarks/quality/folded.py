"""Scores of codes of folded and whitened gradients, layer by layer, from a dump of `benchmarks.quality.pairs`.

    python -m benchmarks.quality.folded DUMP --layers REGEX --codes cut8 cut32 signs exact [--fold 1]

A side that is longer than the other is folded: coordinates j, j + h, j + 2h, ... are added with random signs, with
h near the shorter side (`--fold 1` folds as many times more). Both sides are whitened exactly, with the examples'
own covariances. Queries stay dense. Scores (Q, N) go to DUMP/codes, one file for each layer and code, and are not
computed twice; their sums over layers are the scores of an index of these layers.

Shapes: B examples, R rows, T tokens, h1 and h2 folded sides, c rank, Q queries, N examples.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.pairs import Pairs, open_pairs
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.projection import rademacher_signs
from lorif_core.gradients.quantisation import signs
from lorif_core.gradients.roots import inverse_root
from lorif_core.gradients.whitening import second_moment
from lorif_core.spec import CodeSpec, LayerSpec

_RIDGE = 1e-5
_FLOATS = 2**24  # of the gradients that are formed at once

Coder = Callable[[torch.Tensor], torch.Tensor]
"""Turns gradients (B, h1, h2) into what their codes decode to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--layers", default="")
    parser.add_argument("--codes", nargs="+", required=True)
    parser.add_argument("--fold", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = open_pairs(arguments.dump)
    for layer in pairs.layers:
        if re.search(arguments.layers, layer):
            code_scores(pairs, layer, arguments.codes, arguments.fold)


class FoldedLayer:
    """The folded and whitened sides of one layer.

    Args:
        pairs: the dump.
        layer: name of the layer.
        fold: factor by which both sides are folded further than to about the shorter one.
        seed: of the signs.
    """

    def __init__(self, pairs: Pairs, layer: str, fold: int = 1, seed: int = 0) -> None:
        features = pairs.features(layer)
        self.shape = inner, outer = tuple(folded_size(size, min(features), fold) for size in features)
        self._N, self._queries = pairs.examples, pairs.query_rows
        self._x, self._d = (
            _whitened(fold_side(pairs.read(layer, name, slice(None)), size, seed, name), pairs.examples)
            for name, size in (("in", inner), ("out", outer))
        )

    def queries(self) -> torch.Tensor:
        """(Q, h1, h2) gradients of the queries."""
        return self._x[self._queries].transpose(1, 2) @ self._d[self._queries]

    def examples(self) -> Iterator[torch.Tensor]:
        """Blocks (B, h1, h2) of gradients of the examples, in order."""
        block = max(1, _FLOATS // (self.shape[0] * self.shape[1]))
        for start in range(0, self._N, block):
            rows = slice(start, min(start + block, self._N))
            yield self._x[rows].transpose(1, 2) @ self._d[rows]

    def scores(self, coders: Sequence[Coder]) -> list[np.ndarray]:
        """(Q, N) scores by coder."""
        queries = self.queries().flatten(1)
        found: list[list[torch.Tensor]] = [[] for _ in coders]
        for G in self.examples():
            for blocks, coder in zip(found, coders, strict=True):
                blocks.append(queries @ unbiased(G, coder(G)).flatten(1).T)
        return [torch.cat(blocks, dim=1).numpy() for blocks in found]


def folded_size(size: int, shorter: int, fold: int) -> int:
    """Size of a side after folding."""
    return -(-size // (fold * round(size / shorter)))


def fold_side(x_RTd: torch.Tensor, size: int, seed: int, name: str) -> torch.Tensor:
    """(R, T, size): the sums of coordinates j, j + size, j + 2 size, ... with random signs."""
    features = x_RTd.shape[2]
    if features == size:
        return x_RTd
    flips = torch.from_numpy(rademacher_signs(1, features, seed, f"fold/{name}/{features}")).float()[0]
    folded = torch.zeros(*x_RTd.shape[:2], size)
    for start in range(0, features, size):
        stop = min(start + size, features)
        folded[:, :, : stop - start] += x_RTd[:, :, start:stop] * flips[start:stop]
    return folded


def _whitened(x_RTh: torch.Tensor, examples: int) -> torch.Tensor:
    tokens = x_RTh[:examples].flatten(0, 1)
    return x_RTh @ inverse_root(second_moment(tokens) / len(tokens)).float()


def unbiased(G: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """`decoded` scaled such that <G, decoded> = |G|^2."""
    energy = G.square().sum(dim=(1, 2), keepdim=True)
    captured = (G * decoded).sum(dim=(1, 2), keepdim=True)
    return decoded * (energy / torch.maximum(captured, 1e-3 * energy).clamp_min(1e-30))


def coder_of(name: str) -> Coder:
    """`cutC`, `signs` or `exact`."""
    if name == "exact":
        return lambda G: G
    if name == "signs":
        return lambda G: signs(G) * G.abs().mean(dim=(1, 2), keepdim=True)
    return lambda G: decode(*cut(G, rank_of(name)))


def decode(U: torch.Tensor, V: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(B, h1, h2) from factors (B, h1, c), (B, h2, c) and scales (B, c)."""
    return (U * scales[:, None]) @ V.transpose(1, 2)


def code_bytes(name: str, shapes: Sequence[tuple[int, int]]) -> int:
    """Bytes of the code of an example in an index of layers of these shapes; `exact` is float16 there."""
    layers = [LayerSpec(str(number), *shape, *shape) for number, shape in enumerate(shapes)]
    dense = {"exact": CodeSpec("dense", 1, "float16"), "signs": CodeSpec("dense", 1, "sign")}
    code = dense[name] if name in dense else CodeSpec("cut", rank_of(name), "sign")
    return CodeLayout(layers, code).bytes_per_example


def rank_of(name: str) -> int:
    """C of `cutC`."""
    return int(name.removeprefix("cut"))


def cut(G: torch.Tensor, rank: int, sweeps: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signs U (B, h1, c), V (B, h2, c) and scales (B, c): one round of a range finder, a rotation, then sweeps."""
    return swept(G, *leading_factors(G, rank), sweeps)


def leading_factors(G: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Approximate leading factors (B, h1, c) and (B, h2, c)."""
    rank = min(rank, *G.shape[1:])
    probes = min(rank + 1, *G.shape[1:])
    omega = torch.from_numpy(rademacher_signs(G.shape[2], probes, 0, "omega")).to(G)
    Q = torch.linalg.qr(G @ omega).Q
    Z = G.transpose(1, 2) @ Q
    rotation = torch.linalg.eigh(Z.transpose(1, 2) @ Z)[1][:, :, -rank:].flip(2)
    return Q @ rotation, Z @ rotation


def swept(
    G: torch.Tensor, U: torch.Tensor, V: torch.Tensor, sweeps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signs of factors, improved by alternating sweeps over their columns, and scales."""
    U, V = signs(U), signs(V)
    product = G @ V
    scales = joint_scales(product, U, V)
    for _ in range(sweeps):
        U = _best_signs(product, U, V, scales)
        product = G.transpose(1, 2) @ U
        scales = joint_scales(product, V, U)
        V = _best_signs(product, V, U, scales)
        product = G @ V
        scales = joint_scales(product, U, V)
    return U, V, scales


def _best_signs(product: torch.Tensor, x: torch.Tensor, other: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Each column in turn set to the best signs given the rest; `product` is G times the other side."""
    x = x.clone()
    overlap = scales[:, :, None] * (other.transpose(1, 2) @ other)
    for k in range(x.shape[2]):
        wanted = product[:, :, k] - (x @ overlap[:, :, k : k + 1])[:, :, 0] + x[:, :, k] * overlap[:, k, k : k + 1]
        x[:, :, k] = signs(wanted * signs(scales[:, k : k + 1]))
    return x


def joint_scales(product: torch.Tensor, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(B, c) least-squares scales of all terms jointly."""
    gram = (x.transpose(1, 2) @ x) * (other.transpose(1, 2) @ other)
    ridge = (
        _RIDGE * x.shape[1] * other.shape[1] * torch.eye(gram.shape[2]).to(gram)
    )  # equal terms: a singular Gram
    return torch.linalg.solve(gram + ridge, (x * product).sum(dim=1))


def code_path(dump: Path, number: int, code: str, fold: int) -> Path:
    """File of a layer's scores."""
    return dump / "codes" / f"{number:03d}-{code}-f{fold}.npy"


def code_scores(pairs: Pairs, layer: str, codes: Sequence[str], fold: int = 1) -> list[np.ndarray]:
    """(Q, N) scores by code of one layer, from DUMP/codes where they are stored."""
    number = list(pairs.layers).index(layer)
    folder = pairs.folder / "codes"
    folder.mkdir(exist_ok=True)
    paths = {code: code_path(pairs.folder, number, code, fold) for code in codes}
    missing = [code for code in codes if not paths[code].exists()]
    if missing:
        for code, scores in zip(
            missing, FoldedLayer(pairs, layer, fold).scores([coder_of(code) for code in missing]), strict=True
        ):
            np.save(paths[code], scores)
    return [np.load(paths[code]) for code in codes]


if __name__ == "__main__":
    main()
