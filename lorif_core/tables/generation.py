"""Generations: what readers see of an index, and the parts that they consist of.

Rows of one spec (one checkpoint, one whitening) are a part; they are scored with that checkpoint's query gradient,
that whitening and that curvature, and never as if they were rows of another. After continued pretraining, rows
whose gradients were measured to have hardly changed follow the newest checkpoint: they are asked with its query
gradient and curvature, translated into their whitening. An ordinary build has one part.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from lorif_core.curvature.woodbury import CurvatureSpec
from lorif_core.spec import IndexSpec

_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one spec in a generation, and what they are scored with.

    Attributes:
        spec_json: the spec of the rows.
        checkpoint: fingerprint of the model.
        model_path: where the model was.
        model_revision: of a hub id.
        curvature: id of the fit.
        curvature_kind: woodbury, exact or none.
        curvature_json: settings of the fit.
        factored_query: a query keeps only the rank of the codes.
        rows: how many.
        tokens: of the rows.
        metric: name of the covariances whose metric queries are folded with; None for those of the whitening.
        left: rows that were taken out of the curvature since all rows were last fitted.
        sampled: rows of older checkpoints that its curvature stands for, by a sample of them at its own.
        follows: spec of the newer part with whose queries and curvature it is asked; None for its own. Its
            gradients are near enough to those of that checkpoint.
        fragments: (first, last) numbers of the fragments that hold the rows; None where all fragments do.
    """

    spec_json: str
    checkpoint: str
    model_path: str
    model_revision: str | None
    curvature: str
    curvature_kind: str
    curvature_json: str
    factored_query: bool
    rows: int
    tokens: int
    metric: str | None = None
    left: int = 0
    sampled: int = 0
    follows: str | None = None
    fragments: tuple[tuple[int, int], ...] | None = None

    @property
    def spec(self) -> str:
        """Hash of the spec, as in the rows."""
        return hashlib.sha256(self.spec_json.encode()).hexdigest()[:16]

    @property
    def index_spec(self) -> IndexSpec:
        """The spec of the rows."""
        return IndexSpec.from_json(self.spec_json)

    @property
    def curvature_spec(self) -> CurvatureSpec:
        """Settings of the fit."""
        return CurvatureSpec(**json.loads(self.curvature_json))

    def following(self, leader: "Part") -> "Part":
        """The same rows, asked as those of a newer part."""
        return replace(
            self, follows=leader.spec, curvature=leader.curvature, curvature_kind=leader.curvature_kind,
            curvature_json=leader.curvature_json, factored_query=leader.factored_query, metric=None, left=0,
            sampled=0,
        )  # fmt: skip

    def chosen(self, fragments: Sequence[int]) -> list[int]:
        """Those of the table's fragments that hold rows of this part."""
        if self.fragments is None:
            return list(fragments)
        return [number for number in fragments if any(first <= number <= last for first, last in self.fragments)]


@dataclass(frozen=True, slots=True)
class Generation:
    """A published, immutable view of the index.

    `spec` and `checkpoint` are those of the newest part, which is the last of `parts`. `removals` is the number of
    entries of `removed` that its rows are without.
    """

    generation: int
    created_at: datetime
    factors_version: int
    curvature_version: int
    spec: str
    checkpoint: str
    rows: int
    tokens: int
    parts_json: str
    coverage_json: str
    skipped_json: str
    timings_json: str
    quarantined_json: str = "[]"
    changes_json: str = "{}"
    removals: int = 0

    def shows_what(self, other: "Generation") -> bool:
        """Whether readers of both see the same."""
        told: dict[str, Any] = {"generation": 0, "created_at": _EPOCH, "curvature_version": 0}
        told |= {"timings_json": "", "changes_json": "", "removals": 0}
        return replace(self, **told) == replace(other, **told)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts, newest checkpoint last."""
        return parts_of(self.parts_json)

    @property
    def newest(self) -> Part:
        """The part of the newest checkpoint."""
        return self.parts[-1]

    @property
    def leaders(self) -> tuple[Part, ...]:
        """The parts that are asked at their own checkpoint, newest last."""
        return tuple(part for part in self.parts if part.follows is None)

    @property
    def versions(self) -> dict[str, int]:
        """The version of each table that it reads."""
        return {"factors": self.factors_version, "curvature": self.curvature_version}

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of the build's stages."""
        return json.loads(self.timings_json)

    @property
    def changes(self) -> dict[str, Any]:
        """Which command made it, and what that changed."""
        return json.loads(self.changes_json)

    @property
    def index_spec(self) -> IndexSpec:
        """The spec of the newest part."""
        return self.newest.index_spec


def generation_of(parts: Sequence[Part], **columns: Any) -> Generation:
    """A generation of some parts, newest last; `columns` are those that do not follow from them."""
    return Generation(
        spec=parts[-1].spec,
        checkpoint=parts[-1].checkpoint,
        rows=sum(part.rows for part in parts),
        tokens=sum(part.tokens for part in parts),
        parts_json=json.dumps([asdict(part) for part in parts]),
        **columns,
    )


def parts_of(text: str) -> tuple[Part, ...]:
    """Inverse of what `generation_of` makes of its parts."""
    return tuple(
        Part(**{**raw, "fragments": raw["fragments"] and tuple((first, last) for first, last in raw["fragments"])})
        for raw in json.loads(text)
    )


def ranges(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Numbers as (first, last) of the runs that they form."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return tuple(runs)


def now() -> datetime:
    """The current time in UTC, for `created_at`."""
    return datetime.now(UTC)
