"""Which layers: LDS of exact K-FAC scores by layer and by set of layers, next to what a rule could use instead.

    python -m benchmarks.quality.layers TESTBED DUMP RESULT.json

Reads the scores of `benchmarks.quality.layer_scores` and the finished part of the ground truth. Clues that need no
training, each a number a layer:

- `depth`: number of the block divided by the number of blocks.
- `agreement`: correlation of the layer's scores with the sum over all other layers, mean over queries.
- `halves`: correlation of scores between the even tokens of query and example with those between the odd tokens.
- `self`: mean product of the two halves of one example, over the RMS of those of different examples.
- `plants`: score of a noisy copy with its original, in standard deviations over all examples.

Shapes: Q queries, N examples.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.quality.finished import finished_truth, result_parser
from benchmarks.quality.layer_scores import LayerScores, block_of, read_scores
from benchmarks.quality.pairs import open_pairs
from benchmarks.quality.rule import spread
from benchmarks.run_record import write_result
from lorif_core.evaluation.bootstrap import Interval
from lorif_core.evaluation.lds import Truth, bootstrap, lds

DOWN = r"down_proj|mlp\.c_proj"
MLP = r"\.mlp\."


def main() -> None:
    arguments = result_parser(__doc__).parse_args()
    truth = finished_truth(arguments.testbed)
    pairs, layers = open_pairs(arguments.dump), read_scores(arguments.dump)
    complete = len(layers) == len(pairs.layers)
    if not complete:
        layers = {name: layer for name, layer in layers.items() if block_of(name) % 3 == 2}
    found = clues(layers, pairs.planted)
    alone = {name: float(lds(layer.scores, truth).mean()) for name, layer in layers.items()}
    result = {
        "testbed": arguments.testbed.name,
        "subsets": len(truth.losses),
        "runs_a_subset": truth.seeds,
        "blocks": "all" if complete else "every third",
        "sets": sets_table(layers, truth),
        "clues": {group: clue_table(found, alone, pattern) for group, pattern in GROUPS.items()},
        "layers": {
            name: {
                "lds": round(alone[name], 4),
                **{clue: round(values[name], 4) for clue, values in found.items()},
            }
            for name in layers
        },
    }
    write_result(arguments.result, result)


GROUPS = {"all": "", "MLP": MLP, "down": DOWN}


def clues(layers: Mapping[str, LayerScores], planted: Sequence[int]) -> dict[str, dict[str, float]]:
    """Values by clue and layer."""
    total = sum(layer.scores for layer in layers.values())
    blocks = 1 + max(block_of(name) for name in layers)
    by_layer: dict[str, Callable[[str, LayerScores], float]] = {
        "depth": lambda name, layer: (block_of(name) + 0.5) / blocks,
        "agreement": lambda name, layer: correlation(layer.scores, total - layer.scores),
        "halves": lambda name, layer: correlation(layer.halves[0, 0], layer.halves[1, 1]),
        "self": lambda name, layer: separation(layer.own),
        "plants": lambda name, layer: plant_score(layer.plants, planted),
    }
    if not next(iter(layers.values())).own.size:  # `--scores-only`
        del by_layer["halves"], by_layer["self"]
    return {clue: {name: value(name, layer) for name, layer in layers.items()} for clue, value in by_layer.items()}


def correlation(x_QN: np.ndarray, y_QN: np.ndarray) -> float:
    """Pearson correlation over examples, mean over queries."""
    x, y = (values - values.mean(axis=1, keepdims=True) for values in (x_QN, y_QN))
    return float(((x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))).mean())


def separation(products_SS: np.ndarray) -> float:
    """Mean product of an example's own halves over the RMS of those of different examples."""
    others = products_SS[~np.eye(len(products_SS), dtype=bool)]
    return float(products_SS.diagonal().mean() / np.sqrt((others**2).mean()))


def plant_score(scores_PN: np.ndarray, planted: Sequence[int]) -> float:
    """Mean over plants of the original's score in standard deviations above the mean."""
    standard = (scores_PN - scores_PN.mean(axis=1, keepdims=True)) / scores_PN.std(axis=1, keepdims=True)
    return float(standard[np.arange(len(planted)), list(planted)].mean())


def clue_table(
    found: Mapping[str, Mapping[str, float]], alone: Mapping[str, float], pattern: str
) -> dict[str, float]:
    """Spearman correlation over layers between each clue and the LDS of the layer alone."""
    names = [name for name in alone if re.search(pattern, name)]
    values = [alone[name] for name in names]
    return {
        clue: round(float(spearmanr([by_layer[name] for name in names], values).statistic), 3)
        for clue, by_layer in found.items()
    }


def named_sets(names: Sequence[str]) -> dict[str, list[str]]:
    """Sets of layers worth a row."""
    blocks = 1 + max(block_of(name) for name in names)
    sets: dict[str, list[str]] = {"all": list(names)}

    def add(label: str, pattern: str, chosen: Sequence[int]) -> None:
        found = [name for name in names if re.search(pattern, name) and block_of(name) in chosen]
        if found and found not in sets.values():
            sets[label] = found

    every = list(range(blocks))
    kinds = {"MLP": MLP, "attention": "attn", "down": DOWN, "up": r"up_proj|c_fc", "gate": "gate_proj"}
    for kind, pattern in kinds.items():
        add(kind, pattern, every)
    add("attention output", r"o_proj|attn\.c_proj", every)
    for kind, pattern in {"all": "", **kinds}.items():
        for part in range(3):
            add(f"{kind}, third {part + 1}", pattern, every[part * blocks // 3 : (part + 1) * blocks // 3])
        add(f"{kind}, last half", pattern, every[blocks // 2 :])
        add(f"{kind}, last block", pattern, every[-1:])
    for share in (1 / 2, 1 / 3, 1 / 6):
        for count in (1, 2, 3, 4, 6):
            for kind in ("down", "MLP", "up", "all"):
                pattern = {"all": "", **kinds}[kind]
                add(f"{kind}, {count} of the last {share:.2f}", pattern, spread(blocks, share, count))
    return sets


def sets_table(layers: Mapping[str, LayerScores], truth: Truth) -> dict[str, Any]:
    """LDS with interval, paired difference to all layers, and agreement with all layers, by set."""
    sets = named_sets(list(layers))
    scores = {label: np.sum([layers[name].scores for name in names], axis=0) for label, names in sets.items()}
    singles, paired = bootstrap(scores, truth, [(label, "all") for label in sets if label != "all"])
    return {
        label: {
            "layers": len(sets[label]),
            "lds": rounded(singles[label]),
            "minus_all": rounded(paired[label, "all"]) if label != "all" else None,
            "agreement": round(correlation(scores[label], scores["all"]), 3),
        }
        for label in sets
    }


def rounded(estimate: Interval) -> list[float]:
    """Value and bounds of the 95 % interval."""
    return [round(float(value), 4) for value in (estimate.value, estimate.low, estimate.high)]


if __name__ == "__main__":
    main()
