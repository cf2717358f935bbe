"""Presets: named sets of defaults for CONFIG. `docs/how-to/choose-a-preset.md` has the measurements."""

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


def apply_preset(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A raw CONFIG extended by the keys of its preset; explicit keys win. Validation refuses unknown names later.

    A section whose `kind` differs from the preset's takes no keys from the preset, because they belong to its
    kind. The curvature follows the projection: `none` is right only for the preset's whitened projections.

    Raises:
        ValueError: a key of the curvature is set without its kind, but has no effect with the preset's kind.
    """
    merged = dict(raw)
    preset = PRESETS.get(str(raw.get("preset", DEFAULT_PRESET)), {})
    same_projection = _is_same_kind(raw.get("projection"), preset.get("projection", {}))
    for section, defaults in preset.items():
        explicit = raw.get(section)
        if explicit is not None and not isinstance(explicit, Mapping):
            continue  # validation of the section refuses it
        if not _is_same_kind(explicit, defaults) or (section == "curvature" and not same_projection):
            continue
        if explicit and defaults.get("kind") == "none" and "kind" not in explicit:
            raise ValueError(
                f"{section}.{min(explicit)} has no effect with {section}.kind none, the default here; "
                f"set {section}.kind too"
            )
        merged[section] = {**defaults, **(explicit or {})}
    return merged


def _is_same_kind(explicit: Any, defaults: Mapping[str, Any]) -> bool:
    kind = defaults.get("kind")
    return not isinstance(explicit, Mapping) or explicit.get("kind", kind) == kind
