"""Methods that the testbeds compare: baselines, presets and variants. Their names describe how rows are stored."""

from typing import Any

_NONE: dict[str, Any] = {"kind": "none"}
_ALL: dict[str, Any] = {"layers": "all"}
_DENSE: dict[str, Any] = {"kind": "dense", "dtype": "float16"}


def _version_1(factor: int, layers: str = "all", **code: Any) -> dict[str, Any]:
    """Random projections that are whitened, as in the presets of the first release."""
    return {
        "model": {"layers": layers},
        "projection": {"kind": "random", "whiten": True, "factor": factor},
        "code": code,
        "curvature": _NONE,
    }


def _random(factor: int, curvature: dict[str, Any]) -> dict[str, Any]:
    """Dense random projections of all layers, as in LoGRA."""
    return {
        "model": _ALL,
        "projection": {"kind": "random", "factor": factor},
        "code": _DENSE,
        "curvature": curvature,
    }


def _paper(factor: int, factored: bool) -> dict[str, Any]:
    return {
        "preset": "paper",
        "projection": {"factor": factor},
        "query": {"factored": factored},
    }


_TODAY: dict[str, dict[str, Any]] = {name: {"preset": name} for name in ("compact", "balanced", "fine", "quality")}
PRESETS: dict[str, dict[str, Any]] = {
    **_TODAY,
    "version 1 compact": _version_1(2, kind="cut", rank=2, dtype="sign"),
    "version 1 balanced": _version_1(2, kind="cut", rank=4, dtype="sign"),
    "version 1 f2 cut 8": _version_1(2, kind="cut", rank=8, dtype="sign"),
    "version 1 quality": _version_1(1, kind="dense", dtype="sign"),
    "quality, fold auto": {"preset": "quality", "projection": {"fold": "auto"}},
    "quality, fold 1": {"preset": "quality", "projection": {"fold": 1}},
    "K-FAC": _version_1(1, **_DENSE),
    "K-FAC, MLPs": _version_1(1, "mlp", **_DENSE),
}


def methods(examples: int) -> dict[str, dict[str, Any]]:
    """CONFIG keys by method name, for a GPT-2 and a corpus of `examples` examples."""
    return {
        **PRESETS,
        "gradient dot": _random(1, _NONE),
        # the rank equals the number of rows, so the fit spans the full row space and the curvature is exact
        "LoGRA f4": _random(4, {"kind": "woodbury", "rank": examples, "power_iterations": 1}),
        "LoGRA f8": _random(8, {"kind": "exact"}),
        "LoRIF f4 c1, as published": _paper(4, factored=True),
        "LoRIF f4 c1, dense query": _paper(4, factored=False),
        "LoRIF f8 c1, as published": _paper(8, factored=True),
        "LoRIF f16 c1, as published": _paper(16, factored=True),
    }


REAL_METHODS: dict[str, dict[str, Any]] = {
    **_TODAY,
    **{f"{kib} KiB": {"code": {"bytes": 1024 * kib}} for kib in (8, 64)},
    # looked at after the others: half the sides and twice the terms
    "32 KiB, shorter sides": {"projection": {"max_side": 288}, "code": {"bytes": 32768}},
}
"""CONFIG keys by method name, for a pretrained model; version 1 needs more than 24 GiB for its index."""

BUDGET_METHODS: dict[str, dict[str, Any]] = {
    **{f"{kib} KiB": {"code": {"bytes": 1024 * kib}} for kib in (4, 16, 64)},
    # 10 x 10 or so of all layers are 64 KiB of SmolLM2-135M
    "LoGRA f58": _random(58, {"kind": "exact"}),
    # whole gradients take 270 MB an example; these projections estimate their dot product
    "gradient dot, f8": _random(8, _NONE),
}
"""CONFIG keys by method name: budgets of bytes of a pretrained model next to baselines."""

COMPARE = [
    ("compact", "version 1 compact"),
    ("balanced", "version 1 balanced"),
    ("fine", "version 1 f2 cut 8"),
    ("quality", "version 1 quality"),
    ("quality", "K-FAC"),
    ("quality, fold 1", "K-FAC"),
    ("K-FAC, MLPs", "K-FAC"),
    ("balanced", "LoGRA f4"),
    ("balanced", "BM25"),
]
REAL_COMPARE = [
    ("compact", "balanced"),
    ("fine", "balanced"),
    ("64 KiB", "balanced"),
    ("quality", "balanced"),
    ("8 KiB", "balanced"),
    ("32 KiB, shorter sides", "fine"),
    ("balanced", "BM25"),
]
BUDGET_COMPARE = [
    ("4 KiB", "16 KiB"),
    ("64 KiB", "16 KiB"),
    *((f"{kib} KiB", baseline) for baseline in ("LoGRA f58", "gradient dot, f8", "BM25") for kib in (4, 16, 64)),
]
