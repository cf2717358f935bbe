"""The section of the benchmarks page on recording: what it adds to a training."""

from collections.abc import Iterator

from docs_generators.benchmark_results import decimals, interval, load, provenance, signed_interval, sourced
from docs_generators.markdown import code, table

_QUALITY = "recorded.json"
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
    yield from _quality()


def _quality() -> Iterator[str]:
    """LDS of recorded rows and of the metric of the optimiser."""
    result = load(_QUALITY)
    yield "#### LDS of recorded rows {#recorded}"
    yield f"""\
The testbed {code(result["testbed"])}, whose model is trained for two epochs on {result["examples"]:,} examples;
{result["queries"]} queries, {result["subsets"]} subsets, preset `{result["preset"]}`. "Trained" are rows that were
computed of the trained model. The others were recorded: in the first epoch, the last ones, the mean of both, or
the terms of both. "Adam" is the metric of the optimiser's second moments without whitening, "both" is whitened,
too:"""
    compared = {row["first"]: row for row in result["differences"]}
    rows = [
        [
            name,
            interval(values),
            signed_interval(compared[name]["difference"]) if name in compared else "",
            compared[name]["second"] if name in compared else "",
        ]
        for name, values in result["lds"].items()
    ]
    yield sourced(table(["Rows", "LDS", "Difference", "to"], rows), _QUALITY)
    yield provenance(
        _QUALITY, f"python -m benchmarks.quality.recorded TESTBED OUT --result benchmarks/results/{_QUALITY}"
    )
    yield """\
What this does not show: longer trainings, in which early rows drift further, and the seeds of the model."""
