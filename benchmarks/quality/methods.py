"""Methods that the testbeds compare: baselines, presets and variants. Their names describe how rows are stored."""

from typing import Any


def _whitened(factor: int, **code: Any) -> dict[str, Any]:
    return {
        "projection": {"kind": "random", "whiten": True, "factor": factor},
        "code": code,
        "curvature": {"kind": "none"},
    }


def _woodbury(rank: int, **more: Any) -> dict[str, Any]:
    return {"curvature": {"kind": "woodbury", "rank": rank, **more}}


def _paper(factor: int, factored: bool, **code: Any) -> dict[str, Any]:
    return {
        "preset": "paper",
        "projection": {"kind": "random", "factor": factor},
        "code": {"kind": "rank", "dtype": "float16", **code},
        "query": {"factored": factored},
    }


def methods(examples: int) -> dict[str, dict[str, Any]]:
    """CONFIG keys by method name, for a corpus of `examples` examples."""
    dense = {"kind": "dense", "dtype": "float16"}
    return {
        "gradient dot": {
            "projection": {"kind": "random", "factor": 1},
            "code": dense,
            "curvature": {"kind": "none"},
        },
        "K-FAC": _whitened(1, kind="dense", dtype="float16"),
        # the rank equals the number of rows, so the fit spans the full row space and the curvature is exact
        "LoGRA f4": {
            "projection": {"kind": "random", "factor": 4},
            "code": dense,
            **_woodbury(examples, power_iterations=1),
        },
        "LoGRA f8": {
            "projection": {"kind": "random", "factor": 8},
            "code": dense,
            "curvature": {"kind": "exact"},
        },
        "LoRIF f4 c1, as published": _paper(4, factored=True, rank=1),
        "LoRIF f4 c1, dense query": _paper(4, factored=False, rank=1),
        "LoRIF f8 c1, as published": _paper(8, factored=True, rank=1),
        "LoRIF f16 c1, as published": _paper(16, factored=True, rank=1),
        "compact": {"preset": "compact"},
        "balanced": {"preset": "balanced"},
        "quality": {"preset": "quality"},
        "whitened f2 cut 3": _whitened(2, kind="cut", rank=3, dtype="sign"),
        "whitened f2 rank 4 sign": _whitened(2, kind="rank", rank=4, dtype="sign"),
        "whitened f1 cut 4": _whitened(1, kind="cut", rank=4, dtype="sign"),
        "whitened f4 dense sign": _whitened(4, kind="dense", dtype="sign"),
        "whitened f2 dense sign": _whitened(2, kind="dense", dtype="sign"),
    }


COMPARE = [
    ("compact", "LoGRA f4"),
    ("balanced", "LoGRA f4"),
    ("whitened f2 cut 3", "LoGRA f4"),
    ("whitened f1 cut 4", "LoGRA f4"),
    ("quality", "K-FAC"),
    ("compact", "LoRIF f16 c1, as published"),
    ("balanced", "LoRIF f8 c1, as published"),
    ("balanced", "LoRIF f4 c1, as published"),
    ("balanced", "BM25"),
]

# placeholders until the new presets exist
REAL_METHODS: dict[str, dict[str, Any]] = {"balanced": {"preset": "balanced"}}
REAL_COMPARE: list[tuple[str, str]] = []
