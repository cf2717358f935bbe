"""The sections of the benchmarks page on builds and updates: speed, start and memory."""

from collections.abc import Iterator
from typing import Any

from docs_generators.benchmark_results import decimals, load, measured_by, provenance, sourced
from docs_generators.markdown import code, table

_VARIANTS = {
    "train": "training step: forward and full backward",
    "floor": "forward and activation-only backward",
    "build paper": "build, preset `paper`",
    "build compact": "build, preset `compact`",
    "build balanced": "build, preset `balanced`",
    "build fine": "build, preset `fine`",
    "build quality": "build, preset `quality`",
    "build balanced, all MLPs": "build, preset `balanced`, `model.layers: mlp`",
    "build version 1 balanced": "build, the default of the first release",
    "dense 16 x 16": "build, random projections to 16 x 16, all layers",
}


def build_sections() -> Iterator[str]:
    """Markdown blocks in the order of the page."""
    yield from _build()
    yield from _gpu()
    yield from _build_and_query_commands()
    yield from _query_start()
    yield from _start_up()
    yield from _calibration()
    yield from _update()
    yield from _memory()
    yield from _loss_head()


def _build() -> Iterator[str]:
    name, command = measured_by("build")
    result = load(name)
    shapes = list(result["shapes"].values())
    yield "### Build next to training {#build}"
    yield f"""\
How fast gradients of a training corpus become codes, as a share of the time of a training step of the same model
on the same batches ({result["threads"]} threads, medians over {shapes[0]["rounds"]} interleaved rounds). Models
have random weights and the shapes of real ones:"""
    yield "\n".join(
        f"- {code(key)}: {shape['model']}, batches of {shape['rows']} x {shape['tokens']} tokens"
        for key, shape in result["shapes"].items()
    )
    yield sourced(
        table(
            ["Variant", *map(code, result["shapes"])],
            [
                [label, *(_share(shape["variants"].get(variant)) for shape in shapes)]
                for variant, label in _VARIANTS.items()
            ],
        ),
        name,
    )
    yield """\
A build can be faster than the forward and activation-only backward of the model as transformers runs it, because
its backward pass ends at the first tracked layer, and because it differentiates the loss without autograd, only
at scored tokens. What this does not show: GPUs, and reading the corpus or writing the index."""
    yield provenance(name, command)


def _share(row: dict[str, Any] | None) -> str:
    """The time of a variant, training step = 1, and its bytes for each example if it makes a code."""
    if row is None:
        return ""
    size = f", {row['bytes_per_example']:,} B" if row["bytes_per_example"] else ""
    return f"{decimals(row['ratio'], 2)}{size}"


def _gpu() -> Iterator[str]:
    name, command = measured_by("gpu")
    result = load(name)
    yield "### On a GPU {#gpu}"
    yield f"""\
Models with random weights in bfloat16 on one {result["gpu"]}, with the codes of the default preset. A training
step computes weight gradients but updates nothing. Memory is the peak that torch allocated, weights included; a
build needs no weight gradients and keeps no activations below the first tracked layer. Roots are those of the
whitening, which a build computes once. Scans are the prefilter of a search, over codes that are on the GPU."""
    rows = [
        [
            f"{code(shape['model'])}, {shape['batch'][0]} x {shape['batch'][1]} tokens",
            f"{shape['train']['tokens_per_second']:,}",
            f"{shape['build']['tokens_per_second']:,}",
            decimals(shape["build"]["of_training"], 3),
            decimals(shape["train"]["peak_gib"], 2),
            decimals(shape["build"]["peak_gib"], 2),
            decimals(shape["roots"]["seconds"], 2),
            decimals(shape["scans"]["gb_per_second"]["1"], 2),
            decimals(shape["scans"]["gb_per_second"]["64"], 2),
        ]
        for shape in result["shapes"].values()
    ]
    header = [
        "Model and batch", "Training, tokens/s", "Build, tokens/s", "Build of training", "Training, GiB",
        "Build, GiB", "Roots, s", "Scan for one query, GB/s", "for 64",
    ]  # fmt: skip
    yield sourced(table(header, rows), name)
    yield """\
What this does not show: whole builds with Ray and Lance, several GPUs, and real text."""
    yield provenance(name, command)


def _build_and_query_commands() -> Iterator[str]:
    name, command = measured_by("wikitext")
    result = load(name)
    yield "### The commands `build` and `query` {#commands}"
    yield f"""\
Seconds of `lorif build` over {result["rows"]:,} sequences ({result["tokens"]:,} tokens) and of `lorif query`
on its index, with the default preset ({result["model"]}). Cold: the files of index and checkpoint are not in
the page cache. Warm: they are."""
    rows = [["`lorif build`", decimals(result["build"]["command"], 1)]]
    rows += [[f"of them: {stage}", decimals(seconds, 1)] for stage, seconds in _stages(result["build"])]
    rows += [[f"`lorif query`, {kind}", decimals(seconds, 2)] for kind, seconds in result["query"].items()]
    rows += [
        [f"of a warm query: {stage}", decimals(seconds, 2)]
        for stage, seconds in result["warm_query_split"].items()
    ]
    yield sourced(table(["Step", "Seconds"], rows), name)
    yield """\
Nearly all of a query on the command line is importing torch and transformers and loading the model; `lorif
serve` does that once. What this does not show: an index that is larger than memory."""
    yield provenance(name, command)


def _query_start() -> Iterator[str]:
    name, command = measured_by("query_start", " MODEL", "query-start.json")
    result = load(name)
    yield "### A query next to loading the model {#query-start}"
    yield f"""\
Seconds of `lorif query` on an index of {result["rows"]:,} paragraphs with all defaults, whose checkpoint is a
pretrained model (SmolLM2-135M: {result["model"]}), next to a Python script that imports torch and transformers,
loads the same model and runs one forward and one backward pass over the same text. Medians of {result["rounds"]}
interleaved rounds."""
    rows = [
        ["plain script", decimals(result["seconds"]["plain"], 1)],
        ["`lorif query`", decimals(result["seconds"]["query"], 1)],
        ["`lorif query` / plain script, median of the rounds", decimals(result["ratio"]["median"], 2)],
    ]
    rows += [[f"of a query: {step}", decimals(seconds, 2)] for step, seconds in result["split"].items()]
    yield sourced(table(["Step", "Seconds"], rows), name)
    yield f"""\
A query computes {result["eigendecompositions"] or "no"} eigendecompositions: it reads the roots of the whitening.
The table `whitening` of this index has {result["whitening_bytes"] / 2**20:.1f} MiB. What this does not show:
larger models, whose weights take longer to load and to compare with their fingerprint."""
    yield provenance(name, command)


def _calibration() -> Iterator[str]:
    name, command = measured_by("calibration")
    result = load(name)
    yield "### Calibration {#calibration}"
    yield f"""\
Seconds of the steps of `lorif build` over a small corpus ({result["model"]}, {result["cores"]} cores; medians of
{result["rounds"]} builds), and the share of the calibration of the whitening in the sum of its steps. `start` is
the wait until the workers have started and loaded the model, which calibration and indexing share."""
    rows = [
        [
            f"`{preset}`",
            f"{row['rows']:,}",
            *(decimals(row["seconds"][step], 1) for step in ("start", "calibrate", "index", "command")),
            decimals(row["share_of_steps"], 3),
        ]
        for preset, row in result["presets"].items()
    ]
    header = ["Preset", "Rows", "`start`", "`calibrate`", "`index`", "Whole command", "Share of calibration"]
    yield sourced(table(header, rows), name)
    yield """\
The share falls with the size of the corpus, because a sample has at most 256 examples. What this does not show:
larger models, and several workers."""
    yield provenance(name, command)


def _start_up() -> Iterator[str]:
    name, command = measured_by("start_up", " --before CHECKOUT")
    result = load(name)
    yield "### Start-up {#start-up}"
    yield f"""\
CPU seconds of all processes of a `lorif build` of {result["rows"]} rows with a tiny model (medians of
{result["rounds"]} interleaved builds), here and in a checkout of the last commit before start-up became a goal,
where Prefect started a server for each command."""
    measured = result["cpu_seconds"]
    roles = ["driver", "worker", "Ray", "server of Prefect", "all"]
    rows = [
        [label, *(decimals(seconds[role], 1) if role in seconds else "none" for role in roles)]
        for label, seconds in measured.items()
    ]
    yield sourced(table(["", *roles], rows), name)
    yield """\
What this does not show: wall time, because processes start side by side, and a first start after an installation,
which compiles Python's modules."""
    yield provenance(name, command)


def _stages(build: dict[str, float]) -> list[tuple[str, float]]:
    """The stages of a build that took any time."""
    return [(stage, seconds) for stage, seconds in build.items() if stage != "command" and seconds > 0]


def _update() -> Iterator[str]:
    name, command = measured_by("update")
    result = load(name)
    yield "### Update {#update}"
    yield f"""\
Seconds of `lorif update` when the corpus grows by one percent, next to a full build ({result["model"]},
{result["cores"]} cores; medians). The constant is what an update by one row takes: it starts Python, Ray and the
workers, and at the commit of this result a server of Prefect. The share compares what the update takes beyond the
constant with the full build."""
    rows = [_update_row(method, figures) for method, figures in result["methods"].items()]
    header = [
        "Curvature", "Rows", "New rows", "Full build", "Full build of old and new rows", "Update", "Constant",
        "Share of a full build",
    ]  # fmt: skip
    yield sourced(table(header, rows), name)
    yield "What the constant consists of, in seconds:"
    splits = {method: figures["constant_split"] for method, figures in result["methods"].items()}
    steps = list(next(iter(splits.values())))
    rows = [[step, *(decimals(split[step], 2) for split in splits.values())] for step in steps]
    yield sourced(table(["Step", *map(_curvature_name, splits)], rows), name)
    yield f"""\
{_equal_columns(result["methods"])} A share of about zero cannot be told from the constant. What this does not
show: a cluster, where starting workers takes longer, and object storage."""
    yield provenance(name, command)


def _update_row(method: str, figures: dict[str, Any]) -> list[str]:
    seconds = ("build_seconds", "build_of_union_seconds", "update_seconds", "constant_seconds")
    return [
        _curvature_name(method),
        f"{figures['rows']:,}",
        f"{figures['rows_new']:,}",
        *(decimals(figures[key], 1) for key in seconds),
        decimals(figures["fraction_of_build"], 4),
    ]


def _equal_columns(methods: dict[str, Any]) -> str:
    """A sentence on the comparison of the updated rows with those of one build of all files."""
    key = "columns_that_differ_from_build_of_union"
    differing = sorted({column for figures in methods.values() for column in figures[key]})
    if differing:
        listed = ", ".join(map(code, differing))
        return f"Columns that differ from a build of the old and new files together: {listed}."
    return "All columns of all rows equal those of a build of the old and new files together."


def _curvature_name(method: str) -> str:
    return "none (`balanced`)" if method == "default" else code(method)


def _memory() -> Iterator[str]:
    name, command = measured_by("memory")
    result = load(name)
    first, second = result["sequences"]
    yield "### Memory {#memory}"
    yield f"""\
Peak resident memory of one process for each stage, over {first:,} and over {second:,} sequences, whose tables
have {result["table_mib"][0]:.0f} and {result["table_mib"][1]:.0f} MiB. Codes are dense, so that a stage which
held all rows would grow by as much as the table does."""
    rows = [
        [
            stage,
            *(decimals(peak, 1) for peak in figures["peak_mib"]),
            decimals(figures["share_of_table_growth"], 3),
        ]
        for stage, figures in result["stages"].items()
    ]
    header = ["Stage", f"MiB, {first:,} sequences", f"MiB, {second:,} sequences", "Growth, share of the table's"]
    yield sourced(table(header, rows), name)
    yield """\
Memory does not grow with the index. What this does not show: how memory depends on the size of the model."""
    yield provenance(name, command)


def _loss_head() -> Iterator[str]:
    name, command = measured_by("loss_head", name="loss-head.json")
    result = load(name)
    yield "### Memory of the loss {#loss-head}"
    yield f"""\
The loss of a vocabulary of {result["vocabulary"]:,} and its gradient at hidden states of {result["hidden"]}
numbers ({result["threads"]} thread), with all logits in memory and in chunks, as `lorif` computes it:"""
    rows = [
        [
            case["head"],
            case["way"],
            f"{case['tokens']:,}",
            str(round(case["peak_mib"])),
            decimals(case["seconds"], 1),
        ]
        for case in result["cases"]
    ]
    yield sourced(table(["Head", "Logits", "Tokens", "Peak, MiB", "Seconds"], rows), name)
    yield "What this does not show: a GPU."
    yield provenance(name, command)
