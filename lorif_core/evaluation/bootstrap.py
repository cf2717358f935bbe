"""Bootstrap intervals of means over queries. All methods share the resamples, so differences are paired."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorif_core.gradients.projection import counter_generator

RESAMPLES = 2000
_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(value: float, samples: np.ndarray) -> Interval:
    """The value with the central 95 % of the samples (R,)."""
    low, high = np.quantile(samples, _QUANTILES)
    return Interval(value, float(low), float(high))


def mean_intervals(
    methods: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]] = ()
) -> tuple[dict[str, Interval], dict[tuple[str, str], Interval]]:
    """Means over queries of each method, and of the paired differences (first minus second).

    Args:
        methods: per-query values (Q,) by method name; all methods have the same queries in the same order.
        pairs: names of the methods to compare.
    """
    queries = len(next(iter(methods.values())))
    rows_RQ = counter_generator(0, f"queries/{queries}").integers(0, queries, (RESAMPLES, queries))
    means = {name: values[rows_RQ].mean(axis=1) for name, values in methods.items()}
    singles = {name: interval(float(values.mean()), means[name]) for name, values in methods.items()}
    paired = {(a, b): interval(float((methods[a] - methods[b]).mean()), means[a] - means[b]) for a, b in pairs}
    return singles, paired
