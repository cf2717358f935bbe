"""Identity of stored numbers: shards of the corpus, tracked layers, and the spec that compatible rows share."""

import hashlib
import json
import re
from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

_SHARD_KEY = re.compile(r"(.*)\[(\d+):(\d+)\]@(.*)-(\d+)", re.DOTALL)

CHECKPOINT_KEYS = frozenset({"checkpoint", "projection.whitening"})
"""Keys of a spec that change when the same model is trained further."""

_LATER_FIELDS = ("mask", "pair", "messages", "chat")  # of the tokenisation; not in the JSON while they are None

MASKED = -100
"""Label of a token that has no loss, as in transformers."""

CodeKind = Literal["rank", "dense", "cut"]
CodeDtype = Literal["float32", "float16", "int8", "int4", "sign"]


@dataclass(frozen=True, slots=True, order=True)
class FileTag:
    """A version of a corpus file: `etag` changes whenever the file is written."""

    name: str
    etag: str
    size: int

    def shard_key(self, start: int, stop: int) -> str:
        """Identity of the rows [start, stop) of the file."""
        return f"{self.name}[{start}:{stop}]@{self.etag}-{self.size}"


@dataclass(frozen=True, slots=True)
class ShardRef:
    """A range of rows of one corpus file: the unit of work, retry and resume.

    `offset` is the byte at which row `start` begins, or None if the format cannot be read from there; only plain
    jsonl can.
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
        return self.file.shard_key(self.start, self.start + self.rows)

    @property
    def file(self) -> FileTag:
        """The file of the range."""
        return FileTag(self.name, self.etag, self.size)


def projected_size(features: int, factor: int) -> int:
    """ceil(features / factor), the size of one side of a projected gradient."""
    return -(-features // factor)


def folded_sizes(inner: int, outer: int, fold: int | None, max_side: int | None) -> tuple[int, int]:
    """Sizes (d1, d2) of the folded sides of a layer.

    Args:
        inner: in_features.
        outer: out_features.
        fold: number of coordinates of the longer side in a bucket; None makes it about as long as the shorter one.
        max_side: largest size of a side, or None.
    """
    short = min(inner, outer)

    def size(features: int) -> int:
        times = 1 if features == short else (round(features / short) if fold is None else fold)
        if max_side is not None:
            times = max(times, -(-features // max_side))
        return projected_size(features, times)

    return size(inner), size(outer)


def exclusion(names: Iterable[str]) -> str:
    """A value of `model.exclude` that matches these layers, and their namesakes in other blocks."""
    patterns = dict.fromkeys(re.sub(r"\d+", r"\\d+", name.replace(".", r"\.")) for name in names)
    return "^(" + "|".join(patterns) + ")$"


def parse_shard_key(key: str) -> tuple[FileTag, int, int]:
    """(file, first row, row after the last) of a `ShardRef.key`. Raises ValueError if the text is not a key."""
    match = _SHARD_KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key!r} is not the key of a shard")
    name, start, stop, etag, size = match.groups()
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


ProjectionKind = Literal["random", "whitened", "folded", "folded-whitened", "folded-adam", "folded-adam-whitened"]


@dataclass(frozen=True, slots=True)
class ProjectionSpec:
    """Two-sided projection, LoRIF section 3.1; the layers have the sizes d1 and d2.

    `factor` is that of random projections, and 1 for folded ones. `whitening` is the name of the covariances of a
    whitened projection, or None until they are measured. `scales` is the name of the scales of Adam's metric, or
    None until they are read; they stay the same when the model is trained further.
    """

    kind: ProjectionKind = "random"
    factor: int = 16
    seed: int = 0
    calibration_examples: int | Literal["auto"] | None = None
    whitening: str | None = None
    scales: str | None = None

    @property
    def is_folded(self) -> bool:
        """Whether coordinates are added with signs instead of multiplied with a dense matrix."""
        return self.kind.startswith("folded")

    @property
    def is_whitened(self) -> bool:
        """Whether the projected gradients are whitened."""
        return self.kind.endswith("whitened")

    @property
    def is_adam(self) -> bool:
        """Whether both sides are scaled by the second moments of the optimiser."""
        return "adam" in self.kind

    @property
    def has_metric(self) -> bool:
        """Whether a product of projected gradients is an influence, without any curvature."""
        return self.is_whitened or self.is_adam

    def without_whitening(self) -> "ProjectionSpec":
        """The same projection before it is whitened."""
        kind: ProjectionKind = "folded-adam" if self.is_adam else "folded" if self.is_folded else "random"
        return replace(self, kind=kind, whitening=None)


@dataclass(frozen=True, slots=True)
class CodeSpec:
    """Stored form of a projected gradient G: rank-c factors (`cut`: of signs), or G itself (`dense`)."""

    kind: CodeKind = "rank"
    rank: int = 1
    dtype: CodeDtype = "float16"


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """How a record becomes token ids and labels.

    `pair` says how prompt and completion become tokens. It is None if there are none, and in indexes of releases
    that tokenised them apart, so that their rows are never mixed with rows of today. `chat` is the template of
    conversations (`ChatTemplate.to_json`); None if the rows are none.
    """

    tokenizer: str
    text: str | None
    prompt: str | None
    completion: str | None
    tokens: str | None
    labels: str | None
    id: str | None
    max_length: int
    chunk: bool
    mask: str | None = None
    pair: Literal["joined"] | None = None
    messages: str | None = None
    chat: str | None = None


@dataclass(frozen=True, slots=True)
class Coverage:
    """Number of tracked parameters, and the untracked ones as (name or group, parameters)."""

    tracked: int
    total: int
    untracked: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """Tracked parameters divided by all parameters."""
        return self.tracked / self.total if self.total else 0.0

    def sentence(self) -> str:
        """One line for a log: the share of tracked parameters, and the untracked ones."""
        untracked = ", ".join(f"{name} {count:,}" for name, count in self.untracked) or "nothing"
        return f"{self.share:.1%} of {self.total:,} parameters covered; not covered: {untracked}"


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """All settings that change stored numbers. Rows of different specs are never scored together."""

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
        """Canonical JSON: equal specs give equal strings, also those that were stored before a field was added."""
        tree = asdict(self)
        for name in _LATER_FIELDS:
            if tree["tokenisation"][name] is None:
                del tree["tokenisation"][name]
        if tree["projection"]["scales"] is None:
            del tree["projection"]["scales"]
        return json.dumps(tree, sort_keys=True, separators=(",", ":"))

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
        """16 hex digits that identify compatible rows."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def with_whitening(self, name: str | None) -> "IndexSpec":
        """A copy with the covariances of that name."""
        return replace(self, projection=replace(self.projection, whitening=name))

    def with_scales(self, name: str | None) -> "IndexSpec":
        """A copy with the scales of that name."""
        return replace(self, projection=replace(self.projection, scales=name))

    def differences(self, other: "IndexSpec", ignored: Set[str] = frozenset()) -> list[str]:
        """Dotted keys whose values differ, except ignored ones, each with both values, for an error message."""
        mine, theirs = _flatten(asdict(self)), _flatten(asdict(other))
        return [
            f"{key} ({theirs.get(key, 'absent')} there, {mine.get(key, 'absent')} here)"
            for key in sorted((mine.keys() | theirs.keys()) - ignored)
            if mine.get(key) != theirs.get(key)
        ]

    def differences_except_checkpoint(self, other: "IndexSpec") -> list[str]:
        """Why rows of this spec cannot join those of the other; continued training is no reason."""
        return self.differences(other, CHECKPOINT_KEYS)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to dotted keys; all layers become one value that depends on their names and shapes."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "layers":
            flat["model.layers"] = _summarise_layers(value)
        elif key == "chat" and value is not None:
            flat[f"{prefix}{key}"] = f"template #{hashlib.sha256(value.encode()).hexdigest()[:8]}"
        elif isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _summarise_layers(layers: Iterable[dict[str, Any]]) -> str:
    listed = [f"{layer['name']}:{layer['d1']}x{layer['d2']}" for layer in layers]
    digest = hashlib.sha256(",".join(listed).encode()).hexdigest()[:8]
    return f"{len(listed)} layers #{digest}"
