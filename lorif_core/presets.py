"""Presets: named sets of defaults for CONFIG. `docs/how-to/choose-a-preset.md` has the measurements."""

from collections.abc import Mapping
from typing import Any, Literal

PresetName = Literal["paper", "compact", "balanced", "fine", "quality"]
DEFAULT_PRESET: PresetName = "balanced"

_FOLDED: dict[str, dict[str, Any]] = {
    "projection": {"kind": "folded", "whiten": True, "fold": "auto"},
    "curvature": {"kind": "none"},
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # LoRIF as published: random projections, rank-1 factors, truncated SVD with its damping, factored queries
    "paper": {
        "model": {"layers": "all"},
        "projection": {"kind": "random", "factor": 16},
        "code": {"kind": "rank", "rank": 1, "dtype": "float16"},
        "curvature": {"kind": "woodbury", "damping": "paper"},
        "query": {"factored": True},
    },
    "compact": {**_FOLDED, "code": {"kind": "cut", "rank": 4, "dtype": "sign"}},
    "balanced": {**_FOLDED, "code": {"kind": "cut", "rank": 8, "dtype": "sign"}},
    "fine": {**_FOLDED, "code": {"kind": "cut", "rank": 16, "dtype": "sign"}},
    "quality": {
        "projection": {"kind": "folded", "whiten": True, "fold": 2},
        "code": {"kind": "dense", "dtype": "sign"},
        "curvature": {"kind": "none"},
    },
}


def apply_preset(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A raw CONFIG extended by the keys of its preset; explicit keys win. Validation refuses unknown names later.

    A section whose `kind` differs from the preset's takes no keys from the preset, because they belong to its
    kind. The curvature follows the whitening: `none` is right only for whitened projections.

    Raises:
        ValueError: a key of the curvature is set without its kind, but has no effect with the preset's kind.
    """
    merged = dict(raw)
    preset = PRESETS.get(str(raw.get("preset", DEFAULT_PRESET)), {})
    for section, defaults in preset.items():
        explicit = raw.get(section)
        if explicit is not None and not isinstance(explicit, Mapping):
            continue  # validation of the section refuses it
        if not _is_same_kind(explicit, defaults):
            continue
        if section == "curvature" and _whitens(merged) != _whitens(preset):
            continue
        if explicit and defaults.get("kind") == "none" and "kind" not in explicit:
            raise ValueError(
                f"{section}.{min(explicit)} has no effect with {section}.kind none, the default here; "
                f"set {section}.kind too"
            )
        merged[section] = {**defaults, **(explicit or {})}
    return merged


def version_1_settings(factor: int, rank: int, *, dense: bool) -> str:
    """The keys of a CONFIG that go on with an index whose preset was one of the first release."""
    code = "{kind: dense, dtype: sign}" if dense else f"{{kind: cut, rank: {rank}, dtype: sign}}"
    return (
        f"model.layers: all, projection: {{kind: random, whiten: true, factor: {factor}}}, code: {code} and "
        f"curvature: {{kind: none}}"
    )


def _whitens(config: Mapping[str, Any]) -> bool:
    projection = config.get("projection")
    return isinstance(projection, Mapping) and projection.get("whiten") is True


def _is_same_kind(explicit: Any, defaults: Mapping[str, Any]) -> bool:
    kind = defaults.get("kind")
    return not isinstance(explicit, Mapping) or explicit.get("kind", kind) == kind
