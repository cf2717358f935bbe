"""What identifies stored numbers: shards of the corpus, tracked layers, the spec that names compatible rows."""

import hashlib
import json
import re
from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

_SHARD_KEY = re.compile(r"(.*)\[(\d+):(\d+)\]@(.*)-(\d+)", re.DOTALL)

OF_CHECKPOINT = frozenset({"checkpoint", "projection.whitening"})
"""Keys of a spec that change when the same model has been trained further."""

MASKED = -100
"""Label of a token that has no loss, as in transformers."""

CodeKind = Literal["rank", "dense", "cut"]
CodeDtype = Literal["float32", "float16", "int8", "int4", "sign"]


@dataclass(frozen=True, slots=True, order=True)
class FileTag:
    """A corpus file as it was at one time: `etag` changes whenever it is written."""

    name: str
    etag: str
    size: int


@dataclass(frozen=True, slots=True)
class ShardRef:
    """A range of rows of one corpus file: the unit of work, of retry and of resume.

    `offset` is the byte at which row `start` begins, where the format can be entered there (plain jsonl).
    """

    uri: str
    name: str
    etag: str
    size: int
    start: int
    rows: int
    offset: int | None = None

    @property
    def key(self) -> str:
        """Identity of the shard's content: file, ETag, size and range."""
        return f"{self.name}[{self.start}:{self.start + self.rows}]@{self.etag}-{self.size}"

    @property
    def file(self) -> FileTag:
        """The file that it is a range of."""
        return FileTag(self.name, self.etag, self.size)


def projected_size(features: int, factor: int) -> int:
    """ceil(features / factor), the size of one side of a projected gradient."""
    return -(-features // factor)


def parse_shard_key(key: str) -> tuple[FileTag, int, int]:
    """(file, first row, row after the last) of a `ShardRef.key`. Raises ValueError for another text."""
    found = _SHARD_KEY.fullmatch(key)
    if found is None:
        raise ValueError(f"{key!r} is not the key of a shard")
    name, start, stop, etag, size = found.groups()
    return FileTag(name, etag, int(size)), int(start), int(stop)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A tracked linear layer and the shape d1 x d2 of its projected gradient (in-side x out-side)."""

    name: str
    in_features: int
    out_features: int
    d1: int
    d2: int

    @property
    def dim(self) -> int:
        """D = d1 d2, the length of the projected gradient."""
        return self.d1 * self.d2


@dataclass(frozen=True, slots=True)
class ProjectionSpec:
    """Two-sided projection, LoRIF section 3.1: d1 = ceil(I/f), d2 = ceil(O/f).

    `whitening` names the covariances of a `whitened` one; it is None until they are measured.
    """

    kind: Literal["random", "whitened"] = "random"
    factor: int = 16
    seed: int = 0
    calibration_examples: int | None = None
    whitening: str | None = None


@dataclass(frozen=True, slots=True)
class CodeSpec:
    """What is stored of a projected gradient G: rank-c factors (`cut`: of signs), or G itself (`dense`)."""

    kind: CodeKind = "rank"
    rank: int = 1
    dtype: CodeDtype = "float16"


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """How a record becomes token ids and labels."""

    tokenizer: str
    text: str | None
    prompt: str | None
    completion: str | None
    tokens: str | None
    labels: str | None
    id: str | None
    max_length: int
    chunk: bool


@dataclass(frozen=True, slots=True)
class Coverage:
    """Parameters under the tracked layers, and what is not tracked: (name or group, parameters)."""

    tracked: int
    total: int
    untracked: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """Tracked parameters over all parameters."""
        return self.tracked / self.total if self.total else 0.0

    def sentence(self) -> str:
        """One line for a log: the share covered and what is not."""
        missing = ", ".join(f"{name} {count:,}" for name, count in self.untracked) or "nothing"
        return f"{self.share:.1%} of {self.total:,} parameters covered; not covered: {missing}"


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """Everything that changes stored numbers. Rows of different specs are never scored together."""

    checkpoint: str
    model_dtype: str
    layers: tuple[LayerSpec, ...]
    projection: ProjectionSpec
    code: CodeSpec
    tokenisation: TokenSpec
    store_text: bool = True
    loss: str = "token-summed cross-entropy"
    format: int = field(default=5)

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal strings."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "IndexSpec":
        """Inverse of `to_json`."""
        raw = json.loads(text)
        return cls(
            **{
                **raw,
                "layers": tuple(LayerSpec(**layer) for layer in raw["layers"]),
                "projection": ProjectionSpec(**raw["projection"]),
                "code": CodeSpec(**raw["code"]),
                "tokenisation": TokenSpec(**raw["tokenisation"]),
            }
        )

    @property
    def hash(self) -> str:
        """16 hex digits that name compatible rows."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def with_whitening(self, name: str | None) -> "IndexSpec":
        """The same with the covariances of that name."""
        return replace(self, projection=replace(self.projection, whitening=name))

    def differences(self, other: "IndexSpec", ignored: Set[str] = frozenset()) -> list[str]:
        """Dotted keys whose values differ, but ignored ones, each with both values, for an error message."""
        mine, theirs = _flatten(asdict(self)), _flatten(asdict(other))
        return [
            f"{key} ({theirs.get(key, 'absent')} there, {mine.get(key, 'absent')} here)"
            for key in sorted((mine.keys() | theirs.keys()) - ignored)
            if mine.get(key) != theirs.get(key)
        ]

    def continuation_of(self, other: "IndexSpec") -> list[str]:
        """Why rows of this spec cannot join an index that has rows of the other: as `differences`, but those of
        continued pretraining.
        """
        return self.differences(other, OF_CHECKPOINT)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to dotted keys; layers are compared by name and by shape, not one by one."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "layers":
            flat["model.layers"] = _summarise_layers(value)
        elif isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _summarise_layers(layers: Iterable[dict[str, Any]]) -> str:
    listed = [f"{layer['name']}:{layer['d1']}x{layer['d2']}" for layer in layers]
    digest = hashlib.sha256(",".join(listed).encode()).hexdigest()[:8]
    return f"{len(listed)} layers #{digest}"
