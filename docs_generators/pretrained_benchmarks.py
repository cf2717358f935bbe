"""The section of the benchmarks page on commands with a real pretrained model."""

from collections.abc import Iterator
from typing import Any

from docs_generators.benchmark_results import decimals, load, provenance, sourced
from docs_generators.markdown import code, table

_NAME = "pretrained-build.json"
_STEPS = ("calibrate", "index", "curvature")


def pretrained_sections() -> Iterator[str]:
    """Markdown blocks in the order of the page."""
    result = load(_NAME)
    build = result["commands"]["build"]
    yield "### Commands with a pretrained model {#pretrained}"
    yield f"""\
SmolLM2-135M in float32 and {result["paragraphs"]:,} paragraphs of WikiText-2 ({build["tokens"]:,} tokens), all
settings at their defaults. Memory is the largest sum of all processes of a command, in which shared memory counts
once."""
    rows = [
        [f"`lorif {name}`", decimals(command["seconds"], 0), decimals(command["peak_gib"], 1)]
        for name, command in result["commands"].items()
    ]
    yield sourced(table(["Command", "Seconds", "Peak, GiB"], rows), _NAME)
    yield f"""\
Builds next to training on the same paragraphs in the same run, at {result["training_tokens_per_second"]:.0f}
tokens per second: a forward and a full backward pass, without an optimiser. The ratio has the seconds of the
steps of a build, for as many tokens. Builds with a budget have fewer rows, so the calibration weighs more:"""
    builds = {"all defaults": build, **{f"`code.bytes`: {name}": row for name, row in result["budgets"].items()}}
    header = ["Build", "Rows", *(f"{code(step)}, s" for step in _STEPS), "Peak, GiB", "Of training"]
    yield sourced(table(header, [_build_row(name, row) for name, row in builds.items()]), _NAME)
    yield """\
What this does not show: GPUs, larger models, several workers, and the optimiser of a training."""
    yield provenance(
        _NAME,
        "python -m benchmarks.real_model CHECKPOINT",
        f"python -m benchmarks.pretrained_build --model CHECKPOINT --out benchmarks/results/{_NAME}",
    )


def _build_row(name: str, row: dict[str, Any]) -> list[str]:
    seconds = [decimals(row["timings"][step], 0) for step in _STEPS]
    return [name, f"{row['rows']:,}", *seconds, decimals(row["peak_gib"], 1), decimals(row["of_training"], 2)]
