"""The sections of the benchmarks page on rows: searches, large tables, batches of queries and the server."""

from collections.abc import Iterator
from typing import Any

from docs_generators.benchmark_results import decimals, load, measured_by, provenance, rounded, sourced
from docs_generators.markdown import table

_QUERY_COUNTS = (1, 8, 64, 512)
_SCALINGS = {"these rows": "scaling", "`balanced` of version 1, width 256": "scaling_default_code"}
_SCANS = {
    "memory": "search",
    "exact": "every row scored exactly",
    "disk": "search, from disk",
    "two-stage": "two stages",
    "paper": "rows projected onto V_r, as in the paper",
}


def search_sections() -> Iterator[str]:
    """Markdown blocks in the order of the page."""
    yield from _latency()
    yield from _scan()
    yield from _checksums()
    yield from _rows()
    yield from _listing()
    yield from _attribute()
    yield from _serve()
    yield from _connections()


def _latency() -> Iterator[str]:
    name, command = measured_by("latency", " --rounds 2 --sequences 2000")
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
    name, command = measured_by("query")
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
    name, command = measured_by("checksums")
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
    name, command = measured_by("rows")
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
    name, command = measured_by("listing")
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
    name, command = measured_by("attribute")
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
    name, command = measured_by("connections")
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
    name, command = measured_by("serve")
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
