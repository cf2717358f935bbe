"""Other inverses than K-FAC's, applied to the query alone, which costs no byte of an index.

    python -m benchmarks.quality.inverses DUMP --layers REGEX --label NAME [--signs]

Gradients are written in the eigenbasis of both covariances, so an inverse is one number an entry, from the
eigenvalues a and s of the two sides, or from M, the mean square of that entry over the examples:

- `kfac`: 1 / ((a + .01 mean a) (s + .01 mean s)), what whitening does.
- `joint E`: 1 / (a s + E mean(a s)).
- `ekfac E`: 1 / (M + E mean M); M of the examples' own gradients, which are sums over tokens.
- `source T`: (1 - exp(-T r)) / r with r = a s / mean(a s), the inverse that training for a time T reaches.
- `power P`: kfac to the power P.

Scores (Q, N), summed over the layers, go to DUMP/inverses. `--signs` stores signs of the whitened gradients and
corrects the query by the inverse's ratio to `kfac`; else gradients are exact.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.folded import unbiased
from benchmarks.quality.layer_scores import gradients
from benchmarks.quality.pairs import Pairs, open_pairs
from lorif_core.gradients.quantisation import signs
from lorif_core.gradients.roots import EPSILON
from lorif_core.gradients.whitening import second_moment

VARIANTS = ("kfac", "joint .01", "ekfac .1", "ekfac .01", "ekfac .001", "source 100", "power .9")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--layers", required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--signs", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = open_pairs(arguments.dump)
    names = [name for name in pairs.layers if re.search(arguments.layers, name)]
    found = [scores_by_inverse(pairs, name, signs_only=arguments.signs) for name in names]
    (arguments.dump / "inverses").mkdir(exist_ok=True)
    label = f"{arguments.label}-{'signs' if arguments.signs else 'exact'}"
    total = {variant: np.sum([scores[variant] for scores in found], axis=0) for variant in found[0]}
    np.savez(arguments.dump / "inverses" / f"{label}.npz", **total)


def scores_by_inverse(pairs: Pairs, layer: str, *, signs_only: bool) -> dict[str, np.ndarray]:
    """(Q, N) scores of one layer by variant."""
    N = pairs.examples
    x, a = _in_eigenbasis(pairs.read(layer, "in", slice(None)), N)
    d, s = _in_eigenbasis(pairs.read(layer, "out", slice(None)), N)
    rows = pairs.query_rows
    queries = x[rows].transpose(1, 2) @ d[rows]
    moments = torch.zeros_like(queries[0])
    for G in gradients(x[:N], d[:N]):
        moments += G.square().sum(dim=0) / N
    root = (_damped(a)[:, None] * _damped(s)[None]) ** -0.5
    found = {}
    for variant in VARIANTS:
        # rows are whitened by the root; the query gets the rest of the inverse
        folded = (queries * (inverse(variant, a, s, moments) / root)).flatten(1)
        blocks = []
        for G in gradients(x[:N], d[:N]):
            whitened = G * root
            stored = unbiased(whitened, signs(whitened)) if signs_only else whitened
            blocks.append(folded @ stored.flatten(1).T)
        found[variant] = torch.cat(blocks, dim=1).numpy()
    return found


def inverse(variant: str, a: torch.Tensor, s: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """(I, O) factors of the entries in the eigenbasis."""
    name, _, argument = variant.partition(" ")
    product = a[:, None] * s[None]
    kfac = 1 / (_damped(a)[:, None] * _damped(s)[None])
    if name == "kfac":
        return kfac
    value = float(argument)
    if name == "power":
        return (kfac / kfac.mean()) ** value * kfac.mean()
    if name == "joint":
        return 1 / (product + value * product.mean())
    if name == "ekfac":
        return 1 / (moments + value * moments.mean())
    relative = (product / product.mean()).clamp_min(1e-9)
    return -torch.expm1(-value * relative) / relative / product.mean()


def _damped(values: torch.Tensor) -> torch.Tensor:
    return values + EPSILON * values.mean()


def _in_eigenbasis(x_RTd: torch.Tensor, examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = x_RTd[:examples].flatten(0, 1)
    values, vectors = torch.linalg.eigh(second_moment(tokens) / len(tokens))
    return x_RTd @ vectors.float(), values.clamp_min(0.0).float()


if __name__ == "__main__":
    main()
