"""What happened to answers when the model was trained again without the passages that a method names."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Removal:
    """A training without the passages that a method names for every question.

    Attributes:
        method: name of the method.
        passages: number of distinct passages that were left out; 0 for a training with another seed only.
        rises: (Q,) rise in the mean loss per token of each question's answer, in nats.
        given: (Q,) whether each answer is still what the model says first.
        mean: mean of the rises.
        low: lower end of the 95 % bootstrap interval of the mean over questions.
        high: upper end of it.
    """

    method: str
    passages: int
    rises: tuple[float, ...]
    given: tuple[bool, ...]
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean rise of the first method minus that of the second, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """Trainings without the passages of each method, all else being equal.

    Attributes:
        k: passages that each method names for a question.
        rows: training examples of the model.
        queries: ids of the Q questions.
        losses: (Q,) mean loss per token of each question's answer, in nats, with all passages.
        removals: one per method; the first one is compared with the second.
        difference: of these two.
        remark: what to know about the answers; may be empty.
    """

    k: int
    rows: int
    queries: tuple[str, ...]
    losses: tuple[float, ...]
    removals: tuple[Removal, ...]
    difference: Difference
    remark: str = ""

    def outcomes(self, query_id: str) -> list[tuple[str, float, bool]]:
        """(method, rise, whether it is still given) of one question; empty if it is not among the questions."""
        if query_id not in self.queries:
            return []
        row = self.queries.index(query_id)
        return [(removal.method, removal.rises[row], removal.given[row]) for removal in self.removals]

    @property
    def verdict(self) -> str:
        """What the difference of the first two methods means, as a sentence."""
        first, second = (removal.method for removal in self.removals[:2])
        if self.difference.low > 0:
            return f"Leaving out {first} did more than leaving out {second}"
        if self.difference.high < 0:
            return f"Leaving out {first} did less than leaving out {second}"
        return f"The answers are too few to tell {first} from {second}"

    def bar(self, removal: Removal) -> "Bar":
        """Where the bar and the interval of a removal are on an axis that all removals share."""
        start = min(0.0, *(each.low for each in self.removals))
        length = max(0.0, *(each.high for each in self.removals)) - start or 1.0
        zero, mean, low, high = (
            100 * (x - start) / length for x in (0.0, removal.mean, removal.low, removal.high)
        )
        return Bar(min(zero, mean), abs(mean - zero), low, high, zero)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can encode."""
        return {
            "k": self.k,
            "rows": self.rows,
            "queries": list(self.queries),
            "losses": list(self.losses),
            "removals": [
                {**asdict(removal), "rises": list(removal.rises), "given": list(removal.given)}
                for removal in self.removals
            ],
            "difference": asdict(self.difference),
        }


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar from `left` with a `width`, an interval from `low` to `high`, and the zero; in percent of the axis."""

    left: float
    width: float
    low: float
    high: float
    zero: float
