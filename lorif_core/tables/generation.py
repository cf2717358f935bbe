"""Generations, which are the published views of an index, and the parts that a generation consists of.

The rows of one spec (one checkpoint, one whitening) form a part. They are scored with the query gradient of their
checkpoint, their whitening and their curvature, never with those of another part. There is one exception. After
continued pretraining, a part whose gradients have measurably hardly changed can follow the newest checkpoint: it
is scored with the query gradient and curvature of that checkpoint, converted to the whitening of the part. The
generation of an ordinary build has one part.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from lorif_core.curvature.woodbury import CurvatureSpec
from lorif_core.spec import IndexSpec

_UNMEASURED = "unmeasured"
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one spec in a generation, and what they are scored with.

    Attributes:
        spec_json: the spec of the rows.
        checkpoint: fingerprint of the model.
        model_path: path of the model when the rows were computed.
        model_revision: revision, if the path is a hub id.
        curvature: id of the fitted curvature.
        curvature_kind: woodbury, exact or none.
        curvature_json: settings of the fit.
        factored_query: queries are reduced to the rank of the codes.
        rows: number of rows.
        tokens: number of tokens of the rows.
        metric: name of the covariances in whose metric queries are folded; None for those of the whitening.
        left: rows that were taken out of the curvature since it was last fitted over all rows.
        sampled: rows of older checkpoints that the curvature represents by a sample at this checkpoint.
        follows: spec of the newer part whose queries and curvature score this part; None if it uses its own.
            Its gradients are close enough to those of the newer checkpoint.
        fragments: (first, last) numbers of the fragments that contain the rows; None if all fragments do.
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
        """Hash of the spec, as it is stored in the rows."""
        return hashlib.sha256(self.spec_json.encode()).hexdigest()[:16]

    @property
    def index_spec(self) -> IndexSpec:
        """The spec of the rows."""
        return IndexSpec.from_json(self.spec_json)

    @property
    def curvature_spec(self) -> CurvatureSpec:
        """Settings of the fit."""
        return CurvatureSpec(**json.loads(self.curvature_json))

    def following(self, newer: "Part") -> "Part":
        """The same rows, scored with the queries and the curvature of a newer part."""
        return replace(
            self, follows=newer.spec, curvature=newer.curvature, curvature_kind=newer.curvature_kind,
            curvature_json=newer.curvature_json, factored_query=newer.factored_query, metric=None, left=0,
            sampled=0,
        )  # fmt: skip

    def select_fragments(self, fragments: Sequence[int]) -> list[int]:
        """The fragments that contain rows of this part, out of all fragments of the table."""
        if self.fragments is None:
            return list(fragments)
        return [number for number in fragments if any(first <= number <= last for first, last in self.fragments)]


@dataclass(frozen=True, slots=True)
class Generation:
    """A published, immutable view of the index.

    `spec` and `checkpoint` are those of the newest part, which is the last of `parts`. `removals` is the number of
    entries of the table `removed` that have been applied to its rows.
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

    def __repr__(self) -> str:
        created = f"{self.created_at:%Y-%m-%d %H:%M} UTC"
        return f"Generation({self.generation}, {self.rows:,} rows, checkpoint {self.checkpoint}, {created})"

    def shows_same_as(self, other: "Generation", *, with_changes: bool = False) -> bool:
        """Whether readers see the same in both generations, and if asked, the same changes."""
        invisible: dict[str, Any] = {"generation": 0, "created_at": _EPOCH, "curvature_version": 0}
        invisible |= {"timings_json": "", "removals": 0} | ({} if with_changes else {"changes_json": ""})
        return replace(self, **invisible) == replace(other, **invisible)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts, newest checkpoint last."""
        return parts_from_json(self.parts_json)

    @property
    def newest(self) -> Part:
        """The part of the newest checkpoint."""
        return self.parts[-1]

    @property
    def own_checkpoint_parts(self) -> tuple[Part, ...]:
        """The parts that are scored at their own checkpoint, newest last."""
        return tuple(part for part in self.parts if part.follows is None)

    @property
    def versions(self) -> dict[str, int]:
        """The version that it reads of each table."""
        return {"factors": self.factors_version, "curvature": self.curvature_version}

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of the build's stages."""
        return json.loads(self.timings_json)

    @property
    def changes(self) -> dict[str, Any]:
        """The command that made it, and what the command changed."""
        return json.loads(self.changes_json)

    @property
    def is_unmeasured(self) -> bool:
        """Whether its rows were recorded during a training, and no update has measured their drift since."""
        return self.changes.get("command") == "record" or bool(self.changes.get(_UNMEASURED))

    def change(self, command: str, **details: Any) -> dict[str, Any]:
        """The changes of a generation that a command derives from this one without measuring its rows."""
        return {"command": command, **details, **({_UNMEASURED: True} if self.is_unmeasured else {})}

    @property
    def index_spec(self) -> IndexSpec:
        """The spec of the newest part."""
        return self.newest.index_spec


def generation_of(parts: Sequence[Part], **columns: Any) -> Generation:
    """A generation of parts, newest last; `columns` are the fields that do not follow from the parts."""
    return Generation(
        spec=parts[-1].spec,
        checkpoint=parts[-1].checkpoint,
        rows=sum(part.rows for part in parts),
        tokens=sum(part.tokens for part in parts),
        parts_json=json.dumps([asdict(part) for part in parts]),
        **columns,
    )


def metric_words(generation: Generation) -> str:
    """The metric of the scores: the kind of the curvature, or that of whitened or scaled projections."""
    part, projection = generation.newest, generation.newest.index_spec.projection
    if part.curvature_kind != "none" or not projection.has_metric:
        return part.curvature_kind
    if not projection.is_adam:
        return "K-FAC, in the projections"
    return "K-FAC, damped by Adam's second moments" if projection.is_whitened else "Adam's second moments"


def parts_from_json(text: str) -> tuple[Part, ...]:
    """Parse `Generation.parts_json`."""
    return tuple(
        Part(**{**raw, "fragments": raw["fragments"] and tuple((first, last) for first, last in raw["fragments"])})
        for raw in json.loads(text)
    )


def ranges(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Consecutive runs of some numbers, each as (first, last)."""
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
