"""The section of the benchmarks page on plans: sizes and memory without weights, and how far estimates are off."""

from collections.abc import Iterator, Mapping

from docs_generators.benchmark_results import decimals, load, provenance, sourced
from docs_generators.markdown import code, table

_NAME = "plans.json"


def plans_sections() -> Iterator[str]:
    """Markdown blocks in the order of the page."""
    result = load(_NAME)
    plans, runs, checks = result["plans"], result["runs"], result["checks"]
    yield "### Plans of large models {#plans}"
    examples, tokens = result["batch"]
    yield f"""\
Sizes and memory that the defaults have for published models, from their configurations, without weights. GiB at
the peak of each process, with weights in bfloat16 and batches of {examples} x {tokens} tokens on the CPU:"""
    stages = ("calibration", "indexing", "query", "driver")
    header = ["Model", "Parameters, 1e9", "Weights", *(stage.capitalize() for stage in stages)]
    rows = [
        [
            code(name),
            decimals(plan["billions"], 2),
            decimals(plan["weights_gib"], 2),
            *(decimals(plan["memory_gib"][stage], 2) for stage in stages),
        ]
        for name, plan in plans.items()
    ]
    yield sourced(table(header, rows), _NAME)
    yield "Layers that are tracked, the largest side, and bytes of a row:"
    configs = list(next(iter(plans.values()))["configs"])
    rows = [[code(name), *(_sizes(plan["configs"][label]) for label in configs)] for name, plan in plans.items()]
    yield sourced(table(["Model", *configs], rows), _NAME)
    examples, tokens = result["run_batch"]
    yield f"""\
Peaks of a few real-shaped blocks with random weights in float32 and a vocabulary of 16,384, each in a new process,
with a batch of {examples} x {tokens} tokens, next to the plan for these blocks:"""
    rows = [
        [
            f"{run['blocks']} of {code(name)}",
            *(cell for stage in stages[:2] for cell in _compared(run["memory_gib"][stage])),
        ]
        for name, run in runs.items()
    ]
    header = ["Blocks"]
    for stage in stages[:2]:
        header += [f"{stage.capitalize()}, plan, GiB", "measured", "ratio"]
    yield sourced(table(header, rows), _NAME)
    counts = ", ".join(f"{name}: {check['tokens']:,} tokens" for name, check in checks.items())
    yield f"""\
What `lorif check` predicts from a sample, next to what `lorif build` and `lorif query` then took
({next(iter(checks.values()))["paragraphs"]} paragraphs of WikiText-2; {counts}):"""
    rows = [
        [f"{name}: {kind}", unit, *_compared(pair)]
        for name, check in checks.items()
        for part, unit in (("memory_gib", "GiB"), ("seconds", "s"))
        for kind, pair in check[part].items()
    ]
    yield sourced(table(["Model", "Unit", "Predicted", "Taken", "Ratio"], rows), _NAME)
    yield """\
What this does not show: GPUs, and whole models above 135 million parameters."""
    yield provenance(_NAME, "python -m benchmarks.plans --model FOLDER --out benchmarks/results/plans.json")


def _sizes(config: dict[str, int]) -> str:
    return f"{config['layers']} layers, {config['largest_side']:,}, {config['bytes']:,} B"


def _compared(pair: Mapping[str, float]) -> list[str]:
    return [decimals(pair[key], 2) for key in ("predicted", "taken", "ratio")]
