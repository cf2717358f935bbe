"""The sections of the benchmarks page on speed and memory: build, update, scan, batch, server."""

from collections.abc import Iterator
from typing import Any

from docs_generators.benchmark_results import decimals, load, provenance, rounded, sourced
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
_QUERY_COUNTS = (1, 8, 64, 512)
_SCALINGS = {"these rows": "scaling", "`balanced` of version 1, width 256": "scaling_default_code"}
_SCANS = {
    "memory": "search",
    "exact": "every row scored exactly",
    "disk": "search, from disk",
    "two-stage": "two stages",
    "paper": "rows projected onto V_r, as in the paper",
}


def speed_sections() -> Iterator[str]:
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
    yield from _latency()
    yield from _scan()
    yield from _checksums()
    yield from _rows()
    yield from _listing()
    yield from _attribute()
    yield from _serve()
    yield from _connections()


def _command(module: str, options: str = "", name: str | None = None) -> tuple[str, str]:
    """The result of a benchmark and the command that measures it."""
    result = name or f"{module}.json"
    return result, f"python -m benchmarks.{module}{options} --out benchmarks/results/{result}"


def _build() -> Iterator[str]:
    name, command = _command("build")
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
    name, command = _command("gpu")
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
    name, command = _command("wikitext")
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
    name, command = _command("query_start", " MODEL", "query-start.json")
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
    name, command = _command("calibration")
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
    name, command = _command("start_up", " --before CHECKOUT")
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
    name, command = _command("update")
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
    name, command = _command("memory")
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
    name, command = _command("loss_head", name="loss-head.json")
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


def _latency() -> Iterator[str]:
    name, command = _command("latency", " --rounds 2 --sequences 2000")
    result = load(name)
    yield "### Latency of an object store {#latency}"
    yield f"""\
Throughput of `lorif build` ({result["model"]}, {result["sequences"]:,} sequences) with corpus, checkpoint and
index in a local S3 server behind a proxy, without and with {result["latency_ms"]:.0f} ms added to every
request."""
    rates = result["tokens_per_second"]
    rows = [
        [str(number), f"{without:,}", f"{delayed:,}", decimals(kept, 3)]
        for number, (without, delayed, kept) in enumerate(
            zip(rates["without"], rates["with"], result["throughput_kept"]["rounds"], strict=True), start=1
        )
    ]
    header = ["Round", "Tokens per second, without", "Tokens per second, with latency", "Share kept"]
    yield sourced(table(header, rows), name)
    yield "What this does not show: a store with little bandwidth, or one that limits requests."
    yield provenance(name, command)


def _scan() -> Iterator[str]:
    name, command = _command("query")
    result = load(name)
    yield "### Scan {#scan}"
    yield f"""\
Rows per second of a scan, by code and by the number of queries that are asked together (random codes of the
layer shapes of a GPT-2 with 4 layers of width 256, {result["threads"]} threads, median of {result["rounds"]}
rounds). Search is what the product does: a prefilter over all rows, and exact scores of the rows that may be
among the first ten."""
    rates = {tuple(key.split(" | ")): row for key, row in result["rows"].items() if " | " in key}
    rows = [
        [
            method,
            f"{size:,}",
            _SCANS.get(kind, kind),
            *(_rate(rates, method, kind, count) for count in _QUERY_COUNTS),
        ]
        for method, size, kind in dict.fromkeys((key[0], row["bytes"], key[1]) for key, row in rates.items())
    ]
    header = ["Code", "Bytes", "Scan", *(f"{count} quer{'y' if count == 1 else 'ies'}" for count in _QUERY_COUNTS)]
    yield sourced(table(header, rows), name)
    yield "Limits of the machine, measured in the same run:"
    limits = [
        ["sum of floats in memory", f"{decimals(result['rows']['plain sum']['gb_per_s'], 2)} GB/s"],
        ["matrix product in float32", f"{decimals(result['gemm_gflops'], 1)} GFLOP/s"],
        ["matrix product in bfloat16", f"{decimals(result['gemm_bfloat16_gflops'], 1)} GFLOP/s"],
    ]
    yield sourced(table(["Operation", "Rate"], limits), name)
    yield """\
What this does not show: rows that are read from an object store, or a machine without bfloat16 instructions."""
    yield provenance(name, command)


def _rate(rates: dict[tuple[str, ...], dict[str, Any]], method: str, kind: str, count: int) -> str:
    row = rates.get((method, kind, str(count)))
    return "" if row is None else rounded(row["rows_per_s"])


def _checksums() -> Iterator[str]:
    name, command = _command("checksums")
    result = load(name)
    yield "### Checksums {#checksums}"
    yield f"""\
What the comparison of rows with their checksums adds to the first scan of a process from disk, for one query
(rows as in the scan above, CPU time of {result["threads"]} thread, fastest of {result["rounds"]} rounds). Later
scans do not compare."""
    rows = [
        [
            method,
            f"{row['bytes']:,}",
            rounded(row["plain_rows_per_s"]),
            rounded(row["compared_rows_per_s"]),
            decimals(row["share"], 3),
            decimals(row["us_per_row"], 2),
        ]
        for method, row in result["rows"].items()
    ]
    header = ["Code", "Bytes", "Rows per second", "Compared", "Share added", "Comparison alone, us per row"]
    yield sourced(table(header, rows), name)
    yield "What this does not show: rows that are read from an object store, where reading takes longer."
    yield provenance(name, command)


def _rows() -> Iterator[str]:
    name, command = _command("rows")
    result = load(name)
    yield "### Tables of many rows {#rows}"
    yield f"""\
One table with {result["code_bytes"]:.0f} bytes of random codes a row grows from size to size, as a build makes it:
workers write shards and join them, and the driver commits. Each measurement is a process of its own; memory is
what it takes beyond its imports. The plan is that of an update by 0.1 % of new rows."""
    kinds = {
        "fragments": "Fragments",
        "commits": "Commits",
        "commit_seconds": "All commits, s",
        "last_commit_ms": "Last commit, ms",
        "manifest_bytes_written": "Manifests and transactions written, bytes",
        "manifest_bytes_stored": "Of these stored in the end",
        "bytes_per_row_beyond_codes": "Bytes a row beyond codes",
        "open_seconds": "Open the newest generation, s",
        "inventory_seconds": "Inventory, s",
        "plan_seconds": "Plan of an update, s",
        "plan_mib": "Memory of the plan, MiB",
        "status_seconds": "`lorif status`, s",
        "scan_seconds": "Scan of all codes, s",
        "scan_mib": "Memory of the scan, MiB",
    }
    sizes = result["sizes"]
    line = result["extrapolated"]
    rows = [
        [label, *(f"{size[kind]:,}" for size in sizes), f"{line[kind]:,}" if kind in line else ""]
        for kind, label in kinds.items()
    ]
    header = ["", *(f"{size['rows']:,} rows" for size in sizes), f"{line['rows']:,} rows"]
    yield sourced(table(header, rows), name)
    yield """\
The last column is no measurement: it goes on from the last two sizes on a straight line. Wider codes make more
fragments of 64 MiB, and the manifests grow with them; what a plan takes depends on the number of shards only."""
    yield """\
The machine did other work at the same time, so the seconds of the scans cannot be compared. What this does not
show: an object store, where each file and each commit waits for several requests."""
    yield provenance(name, command)


def _listing() -> Iterator[str]:
    name, command = _command("listing")
    result = load(name)
    yield "### Listing a corpus {#listing}"
    yield f"""\
What `check`, `build` and `update` do first, for {result["rows"]:,} rows in {result["files"]} files of JSON lines
({result["bytes"] / 1e9:.2f} GB on a local disk). An index keeps what the first listing found, so that the second
reads no file. Memory is what the process of the command takes beyond its imports."""
    rows = [
        [
            *label.split(", "),
            decimals(figures["seconds"], 2),
            decimals(figures["driver_cpu_seconds"], 2),
            str(figures["driver_mib"]),
            f"{figures['kept_bytes']:,}" if "kept_bytes" in figures else "",
        ]
        for label, figures in result["listings"].items()
    ]
    header = ["Corpus", "Listing", "Seconds", "CPU seconds of the command", "Memory, MiB", "Kept bytes"]
    yield sourced(table(header, rows), name)
    yield """\
"Read here" keeps nothing and uses no workers. A first listing with ids gives so many bytes to workers, and its
seconds include the start of a private Ray. The machine had several times more work than cores, so compare CPU
seconds; those of workers are not among them. What this does not show: more than two cores, on which workers pay,
or an object store."""
    yield provenance(name, command)


def _attribute() -> Iterator[str]:
    name, command = _command("attribute")
    result = load(name)
    beyond, brute = result["beyond_loaded_mib"], result["brute_force"]
    yield "### Batches of queries {#attribute}"
    yield f"""\
`lorif attribute` with {result["queries"]:,} queries against {result["rows"]:,} rows of
{result["bytes_per_row"]} bytes, with `compute.memory_gb` {result["memory_gb"]}, killed twice and resumed. The
table has the peak memory of each kind of process, and what that is beyond the same command with one query
against 512 rows."""
    rows = [[process, str(peak), str(beyond[process])] for process, peak in result["peak_mib"].items()]
    rows.append(["all together", str(result["together_mib"]), str(result["beyond_loaded_together_mib"])])
    yield sourced(table(["Process", "Peak, MiB", "Beyond one query, MiB"], rows), name)
    yield f"""\
The {brute["hits"]:,} hits of {brute["queries"]} queries were compared with brute force in float64:
{brute["same_example"]:,} name the same example."""
    yield "Two workers of one thread each, next to one worker, in rows per second:"
    rows = [
        [label, str(number), f"{one:,}", f"{two:,}", decimals(ratio, 2)]
        for label, scaling in _SCALINGS.items()
        for number, (one, two, ratio) in enumerate(_scaling_rounds(result[scaling]), start=1)
    ]
    yield sourced(table(["Code", "Round", "One worker", "Two workers", "Ratio"], rows), name)
    yield """\
With small rows most of the work is comparing and merging scores, which the driver does on the same two cores.
What this does not show: workers on several machines."""
    yield provenance(name, command)


def _scaling_rounds(scaling: dict[str, Any]) -> Iterator[tuple[int, int, float]]:
    rates = scaling["rows_per_second"]
    yield from zip(rates["1"], rates["2"], scaling["two_over_one"], strict=True)


def _connections() -> Iterator[str]:
    name, command = _command("connections")
    result = load(name)
    yield "### Hostile connections {#hostile-connections}"
    yield f"""\
{result["connections"]} connections to `lorif serve` for {result["seconds"]:.0f} seconds. Most of them are silent,
send a head or a body byte by byte, do not read the answer, or send a body that is too large, and each is opened
again when the server ends it. Honest clients ask meanwhile, and one asks for `/health`."""
    labels = {
        "questions": "honest questions",
        "answered": "answered",
        "refused": "refused with 429 or 503 and `Retry-After`",
        "not_in_form": "other replies",
        "lost": "without a reply",
        "health_replies": "replies of `/health`, all with status 200",
    }
    rows = [[label, str(result[key])] for key, label in labels.items()]
    milliseconds = {
        "question_p50_ms": "median time to a reply, ms",
        "health_p50_ms": "median time of `/health`, ms",
        "health_max_ms": "longest time of `/health`, ms",
    }
    rows += [[label, decimals(result[key], 1)] for key, label in milliseconds.items()]
    memory = {
        "resident_mib_after_a_quarter": "memory of the server after a quarter of the time, MiB",
        "resident_mib_at_the_end": "memory of the server at the end, MiB",
    }
    rows += [[label, str(result[key])] for key, label in memory.items()]
    yield sourced(table(["Measure", "Value"], rows), name)
    yield "What this does not show: connections from many machines, or over a slow network."
    yield provenance(name, command)


def _serve() -> Iterator[str]:
    name, command = _command("serve")
    result = load(name)
    yield "### Server {#serve}"
    yield f"""\
`lorif serve` with {result["questions"]} questions over an index of {result["rows"]} rows ({result["model"]},
{result["threads"]} threads). Questions that wait at the same time share a scan."""
    labels = {
        "all_at_once": "all at once",
        "one_at_a_time": "one at a time, codes in memory",
        "one_at_a_time_from_disk": "one at a time, codes on disk",
    }
    rows = [
        [label, *(decimals(result[kind][key], 1) for key in ("p50_ms", "p99_ms", "questions_per_second"))]
        for kind, label in labels.items()
    ]
    yield sourced(table(["Questions", "Median, ms", "99th percentile, ms", "Questions per second"], rows), name)
    yield """\
With so few rows, reading codes from disk takes hardly any time. What this does not show: an index of millions
of rows, for which see [Scan](#scan)."""
    yield provenance(name, command)
