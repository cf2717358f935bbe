"""Presets: sets of keys of CONFIG, below what the user writes. README, "Which preset?", has the evidence."""

from collections.abc import Mapping
from typing import Any, Literal

PresetName = Literal["paper", "compact", "balanced", "quality"]
DEFAULT_PRESET: PresetName = "balanced"

_WHITENED: dict[str, dict[str, Any]] = {
    "projection": {"kind": "whitened", "factor": 2},
    "curvature": {"kind": "none"},
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # LoRIF as published: random projections, rank-1 factors, truncated SVD with its damping, factored queries
    "paper": {
        "projection": {"kind": "random", "factor": 16},
        "code": {"kind": "rank", "rank": 1, "dtype": "float16"},
        "curvature": {"kind": "woodbury", "damping": "paper"},
        "query": {"factored": True},
    },
    "compact": {**_WHITENED, "code": {"kind": "cut", "rank": 2, "dtype": "sign"}},
    "balanced": {**_WHITENED, "code": {"kind": "cut", "rank": 4, "dtype": "sign"}},
    "quality": {
        "projection": {"kind": "whitened", "factor": 1},
        "code": {"kind": "dense", "dtype": "sign"},
        "curvature": {"kind": "none"},
    },
}


def with_preset(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A raw CONFIG with its preset's keys where it has none of its own; a name that is none is refused later.

    Of a section whose `kind` is another than the preset's nothing is taken over: its keys go with their kind. The
    curvature goes with the projection: `none` is right for whitened ones only.

    Raises:
        ValueError: a key of the curvature is set, without its kind, that the preset's kind has no use for.
    """
    merged = dict(raw)
    keys_of = PRESETS.get(str(raw.get("preset", DEFAULT_PRESET)), {})
    same_metric = _same_kind(raw.get("projection"), keys_of.get("projection", {}))
    for section, keys in keys_of.items():
        own = raw.get(section)
        if own is not None and not isinstance(own, Mapping):
            continue  # refused where sections are validated
        if not _same_kind(own, keys) or (section == "curvature" and not same_metric):
            continue
        if own and keys.get("kind") == "none" and "kind" not in own:
            raise ValueError(
                f"{section}.{min(own)} has no effect with {section}.kind none, the default here; "
                f"set {section}.kind too"
            )
        merged[section] = {**keys, **(own or {})}
    return merged


def _same_kind(own: Any, keys: Mapping[str, Any]) -> bool:
    named = own.get("kind", keys.get("kind")) if isinstance(own, Mapping) else keys.get("kind")
    return named == keys.get("kind")
