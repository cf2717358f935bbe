"""LDS of the rule's codes at every budget on a testbed, and of what they replace, from the layers' scores.

    python -m benchmarks.quality.frontier TESTBED DUMP RESULT.json [--stored-only]

Budgets and layers come from `benchmarks.quality.rule`. Every row has LDS with interval, bytes an example, the
paired differences to the old default and to K-FAC over all layers, and the correlation of its scores with those of
K-FAC over all layers, which needs no ground truth. Codes of the rule that are
not stored yet are made first, or left out with `--stored-only`. `explored` rows are sets of down-projections that
were looked at besides, so they prove nothing.

Shapes: Q queries, N examples.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.baselines import baseline_path
from benchmarks.quality.finished import finished_truth, result_parser, testbed_evaluation
from benchmarks.quality.folded import code_bytes, code_path, code_scores
from benchmarks.quality.layer_scores import block_of, read_scores
from benchmarks.quality.layers import DOWN, MLP, correlation, rounded
from benchmarks.quality.pairs import Pairs, open_pairs
from benchmarks.quality.rule import BUDGETS, Choice, choose_for
from benchmarks.run_record import write_result
from lorif_core.evaluation.bm25 import bm25_scores
from lorif_core.evaluation.inputs import load_inputs
from lorif_core.evaluation.lds import bootstrap
from lorif_core.spec import folded_sizes, projected_size

_OLD, _KFAC = "version 1 balanced: all, f2 cut 4", "K-FAC, all layers"
_BASELINES = {_OLD: "old4", "LoGRA f4": "lograf4", "LoGRA f8": "lograf8", "gradient dot": "dot"}


_SEVEN = (16, 18, 20, 22, 24, 26, 28)
EXPLORED = tuple(
    (blocks, code)
    for blocks in ((17, 22, 27), (20, 24, 28), _SEVEN, tuple(range(15, 30)))
    for code in ("cut4", "cut8", "cut16", "cut32", "signs", "exact")
)


@dataclass(frozen=True)
class Row:
    """Scores (Q, N) of a method and its bytes an example; None where nothing is stored."""

    scores: np.ndarray
    bytes: float | None = None


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument("--stored-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {
        **baseline_rows(arguments.testbed, arguments.dump),
        **rule_rows(arguments.dump, stored_only=arguments.stored_only),
    }
    truth = finished_truth(arguments.testbed)
    pairs = [(name, other) for other in (_OLD, _KFAC) if other in rows for name in rows if name != other]
    singles, paired = bootstrap({name: row.scores for name, row in rows.items()}, truth, pairs)
    exact = rows[_KFAC].scores
    result = {
        "testbed": arguments.testbed.name,
        "subsets": len(truth.losses),
        "runs_a_subset": truth.seeds,
        "coverage": coverage(arguments.dump),
        "methods": {
            name: {
                "bytes": None if row.bytes is None else round(row.bytes),
                "lds": rounded(singles[name]),
                "minus_old": rounded(paired[name, _OLD]) if (name, _OLD) in paired else None,
                "minus_kfac": rounded(paired[name, _KFAC]) if (name, _KFAC) in paired else None,
                "agreement": round(correlation(row.scores, exact), 3),
            }
            for name, row in rows.items()
        },
    }
    write_result(arguments.result, result)


def coverage(dump: Path) -> dict[str, str]:
    """Which blocks the methods over all layers cover, as their scores may not be finished."""
    pairs = open_pairs(dump)
    stored = {"K-FAC": list(read_scores(dump))}
    for label, method in _BASELINES.items():
        names = enumerate(pairs.layers)
        stored[label] = [name for number, name in names if baseline_path(dump, number, method).exists()]
    blocks = {len(pairs.layers): "all blocks", 0: "none"}
    return {label: blocks.get(len(covered(pairs, names)), "every third block") for label, names in stored.items()}


def baseline_rows(testbed: Path, dump: Path) -> dict[str, Row]:
    """K-FAC, the old default, LoGRA, gradient dot and BM25, as far as their scores are there."""
    pairs = open_pairs(dump)
    exact = {name: layer.scores for name, layer in read_scores(dump).items()}
    chosen = covered(pairs, list(exact))
    rows = {
        label: Row(np.sum([exact[name] for name in chosen if re.search(pattern, name)], axis=0))
        for label, pattern in {_KFAC: "", "K-FAC, MLP": MLP, "K-FAC, down-projections": DOWN}.items()
    }
    numbers = {name: number for number, name in enumerate(pairs.layers)}
    for label, method in _BASELINES.items():
        stored = [name for name in pairs.layers if baseline_path(dump, numbers[name], method).exists()]
        chosen = covered(pairs, stored)
        if chosen:
            paths = [baseline_path(dump, numbers[name], method) for name in chosen]
            rows[label] = Row(
                np.sum([np.load(path) for path in paths], axis=0), baseline_bytes(pairs, method, chosen)
            )
    rows["BM25"] = Row(_bm25(testbed))
    return rows


def covered(pairs: Pairs, stored: Sequence[str]) -> list[str]:
    """All layers if all are stored, else those of every third block if these are, else none."""
    third = [name for name in pairs.layers if block_of(name) % 3 == 2]
    return list(pairs.layers) if len(stored) == len(pairs.layers) else third if set(third) <= set(stored) else []


def baseline_bytes(pairs: Pairs, method: str, layers: Sequence[str]) -> float | None:
    """Bytes an example over the layers; None for `dot`."""
    if method == "dot":
        return None
    old = method.startswith("old")
    factor = 2 if old else int(method.removeprefix("lograf"))
    features = [pairs.features(layer) for layer in layers]
    shapes = [(projected_size(inner, factor), projected_size(outer, factor)) for inner, outer in features]
    return code_bytes("cut4" if old else "exact", shapes)


def _bm25(testbed: Path) -> np.ndarray:
    inputs = load_inputs(testbed_evaluation(testbed))
    tokenizer = inputs.loaded.tokenizer
    assert tokenizer is not None
    examples, queries = (
        [tokenizer.decode(e.input_ids) for e in part] for part in (inputs.examples, inputs.queries)
    )
    return bm25_scores(examples, queries)


def rule_rows(dump: Path, *, stored_only: bool) -> dict[str, Row]:
    """The rule's choice at every budget, and explored sets, whose codes are taken only if they are stored."""
    pairs = open_pairs(dump)
    sizes = {name: pairs.features(name) for name in pairs.layers}
    rows = {}
    for budget in BUDGETS:
        choice = choose_for(sizes, budget)
        if not stored_only or is_stored(pairs, choice):
            rows[f"rule, {budget / 1024:g} KiB: {choice.label}"] = coded(pairs, choice)
    for blocks, code in EXPLORED:
        names = [name for name in pairs.layers if re.search(DOWN, name) and block_of(name) in blocks]
        choice = Choice(names, code)
        if len(names) == len(blocks) and is_stored(pairs, choice):
            label = f"from {min(blocks)} to {max(blocks)}" if len(blocks) > 7 else ", ".join(map(str, blocks))
            rows[f"explored: blocks {label}, {code}"] = coded(pairs, choice)
    return rows


def is_stored(pairs: Pairs, choice: Choice) -> bool:
    """Whether the scores of all its codes are there."""
    numbers = {name: number for number, name in enumerate(pairs.layers)}
    return all(code_path(pairs.folder, numbers[name], choice.code, 1).exists() for name in choice.layers)


def coded(pairs: Pairs, choice: Choice) -> Row:
    """The codes of one choice."""
    scores = [code_scores(pairs, name, [choice.code])[0] for name in choice.layers]
    shapes = [folded_sizes(*pairs.features(name), None, None) for name in choice.layers]
    return Row(np.sum(scores, axis=0), code_bytes(choice.code, shapes))


if __name__ == "__main__":
    main()
