"""The section of the benchmarks page on recording: what it adds to a training."""

from collections.abc import Iterator

from docs_generators.benchmark_results import decimals, load, provenance, sourced
from docs_generators.markdown import table

_SHAPES = {"recording-4x256.json": "4x256", "recording-135m.json": "smollm2-135m"}


def recording_sections() -> Iterator[str]:
    """Markdown blocks in the order of the page."""
    yield "### Index while you train {#recording}"
    yield """\
What recording adds to a training step, and tokens of the training in a CPU second with and without it, medians
over interleaved blocks of one run on one thread, with the preset `balanced`:"""
    for name, shape in _SHAPES.items():
        result = load(name)
        added, rates = result["overhead"], result["tokens_per_cpu_second"]
        row = [
            result["description"].partition(", vocabulary")[0],
            *(f"{decimals(100 * added[key], 1)} %" for key in ("cpu", "wall", "peak")),
            *(decimals(rates[arm], 1) for arm in ("without", "with")),
        ]
        header = ["Model", "CPU time", "wall time", "peak memory", "tokens/s without", "with"]
        yield sourced(table(header, [row]), name)
        yield provenance(name, f"python -m benchmarks.recording --shape {shape} --out benchmarks/results/{name}")
    yield """\
What this does not show: GPUs, several processes, and a quiet machine, so wall times and memory are rough."""
