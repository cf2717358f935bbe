"""LDS, the linear datamodelling score (TRAK, arXiv 2303.14186, section 2), with bootstrap intervals.

The LDS of a query is a Spearman correlation over subsets. It compares the sum of the scores of a subset's examples
with minus the query's loss under a model that was trained on the subset. The LDS of a method is the mean over
queries.

Shapes: M subsets, Q queries, N examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from lorif_core.evaluation.bootstrap import RESAMPLES, Interval, interval
from lorif_core.gradients.projection import counter_generator


@dataclass(frozen=True, slots=True)
class Truth:
    """Ground truth: losses of the queries after training on subsets.

    Attributes:
        members: (M, N) bool, the examples of each subset.
        losses: (M, Q) float64, token-summed losses of the queries, mean over training seeds.
        seeds: training runs per subset.
        agreement: mean over queries of the Spearman correlation between the first two seeds; None for one seed.
    """

    members: np.ndarray
    losses: np.ndarray
    seeds: int = 1
    agreement: float | None = None


def predictions(scores_QN: np.ndarray, truth: Truth) -> np.ndarray:
    """(M, Q) float64 sums of the scores of each subset's examples."""
    return truth.members.astype(np.float64) @ scores_QN.T.astype(np.float64)


def lds(scores_QN: np.ndarray, truth: Truth) -> np.ndarray:
    """(Q,) LDS of each query."""
    return rank_correlation(predictions(scores_QN, truth), -truth.losses)


def rank_correlation(x_MQ: np.ndarray, y_MQ: np.ndarray) -> np.ndarray:
    """(Q,) Spearman correlation of the columns; 0 for a constant column."""
    x, y = (_centred(rankdata(values, axis=0)) for values in (x_MQ, y_MQ))
    norms = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.divide((x * y).sum(axis=0), norms, out=np.zeros(x.shape[1]), where=norms > 0)


def bootstrap(
    methods: Mapping[str, np.ndarray], truth: Truth, pairs: Sequence[tuple[str, str]] = ()
) -> tuple[dict[str, Interval], dict[tuple[str, str], Interval]]:
    """Mean LDS of each method, and paired differences (first minus second), over resampled subsets and queries.

    All methods share the resamples, so their differences are paired. A subset that is drawn twice ties with
    itself, which lowers the correlation of a resample slightly. Values therefore come from the original data, and
    intervals are shifted so that the mean of the resamples equals the value.

    Args:
        methods: scores (Q, N) by method name.
        truth: the ground truth.
        pairs: names of the methods to compare.
    """
    predicted = {name: predictions(scores, truth) for name, scores in methods.items()}
    values = {name: float(rank_correlation(p, -truth.losses).mean()) for name, p in predicted.items()}
    subsets, queries = truth.losses.shape
    draw = counter_generator(0, f"bootstrap/{subsets}x{queries}")
    resampled: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(RESAMPLES):
        rows, columns = draw.integers(0, subsets, subsets), draw.integers(0, queries, queries)
        losses = -truth.losses[np.ix_(rows, columns)]
        for name, p in predicted.items():
            resampled[name].append(float(rank_correlation(p[np.ix_(rows, columns)], losses).mean()))
    samples = {name: np.array(values_R) for name, values_R in resampled.items()}
    singles = {name: _unbiased(values[name], samples[name]) for name in methods}
    paired = {(a, b): _unbiased(values[a] - values[b], samples[a] - samples[b]) for a, b in pairs}
    return singles, paired


def _unbiased(value: float, samples: np.ndarray) -> Interval:
    return interval(value, samples - samples.mean() + value)


def _centred(values_MQ: np.ndarray) -> np.ndarray:
    return values_MQ - values_MQ.mean(axis=0)
