"""Presets: sets of keys of CONFIG, below what the user writes. README, "Which preset?", has the evidence."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

PresetName = Literal["paper", "compact", "balanced", "quality"]
DEFAULT_PRESET: PresetName = "balanced"

_WHITENED: dict[str, dict[str, Any]] = {
    "projection": {"kind": "whitened", "factor": 2},
    "curvature": {"kind": "none"},
}
PRESETS: dict[PresetName, dict[str, dict[str, Any]]] = {
    # LoRIF as published: random projections, rank-1 factors, truncated SVD with its damping, factored queries
    "paper": {
        "projection": {"kind": "random", "factor": 16},
        "code": {"kind": "rank", "rank": 1, "dtype": "float16"},
        "curvature": {"kind": "woodbury", "damping": "paper"},
        "query": {"factored": True},
    },
    "compact": {**_WHITENED, "code": {"kind": "cut", "rank": 2, "dtype": "sign"}},
    "balanced": {**_WHITENED, "code": {"kind": "rank", "rank": 4, "dtype": "sign"}},
    "quality": {
        "projection": {"kind": "whitened", "factor": 1},
        "code": {"kind": "dense", "dtype": "sign"},
        "curvature": {"kind": "none"},
    },
}


def with_preset(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A raw CONFIG with its preset's keys where it has none of its own; what is not a preset is left for later.

    A key of `code` or `curvature` whose meaning hangs on another `kind` than the preset's is not taken over.
    """
    name = raw.get("preset", DEFAULT_PRESET)
    merged = dict(raw)
    for section, keys in PRESETS[name].items() if name in get_args(PresetName) else ():
        own = raw.get(section)
        if own is not None and not isinstance(own, Mapping):
            continue  # refused where sections are validated
        own = own or {}
        if "kind" in keys and own.get("kind", keys["kind"]) != keys["kind"]:
            continue
        merged[section] = {**keys, **own}
    return merged
