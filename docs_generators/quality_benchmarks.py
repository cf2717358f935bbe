"""The sections of the benchmarks page on the quality of searches, self-influences and updates."""

from collections.abc import Iterator
from typing import Any

from docs_generators.benchmark_results import (
    by_method,
    decimals,
    interval,
    load,
    method_name,
    provenance,
    signed_interval,
    sourced,
)
from docs_generators.markdown import code, table

_CURVE_CANDIDATES = (100, 400)
_CHOICES = {
    "energy": "terms with the most energy for each byte",
    "learned": "terms chosen with other queries",
    "random": "random signs of the gradient (simulated)",
}
_SEARCHES = {
    "prefilter": "prefilter (the default)",
    "prefilter, batch": "prefilter, all queries together",
    "two-stage": "two stages",
}
_PREFILTERS = {
    "LowRankQueries": "leading directions",
    "BFloat16Queries": "bfloat16",
    "SignQueries": "signs",
}


def quality_sections() -> Iterator[str]:
    """Markdown blocks in the order of the page."""
    yield from _prefilters()
    yield from _two_stage()
    yield from _self_influence()
    yield from _policies()
    yield from _merging()


def _command(module: str, testbed: str, result: str) -> str:
    """The command that measures a result; OUT is the folder of `lorif evaluate lds`, or of `continued`."""
    return f"python -m benchmarks.quality.{module} {testbed} OUT --result benchmarks/results/{result}"


def _prefilters() -> Iterator[str]:
    """What a prefilter costs in LDS, and which rows it finds."""
    name, first = "prefilter.json", next(iter(by_method("prefilter.json").values()))
    yield "### Prefilters {#prefilters}"
    yield f"""\
A scan ranks all rows by an approximate score (the prefilter) and scores exactly only the rows that may be
among the first k. Measured on the large testbed with {first["queries"]} queries: the LDS of exact scores, the
LDS if the approximate scores were used alone, and the share of the strongest rows by exact scores that the
search finds. A query alone and many queries at once use different prefilters."""
    rows = []
    for preset, result in by_method(name).items():
        for kind, label in (("alone", "one"), ("batch", "all at once")):
            found = result[kind]
            rows.append(
                [
                    code(preset),
                    label,
                    _PREFILTERS.get(found["look"], found["look"]),
                    decimals(result["lds"], 4),
                    decimals(found["lds"], 4),
                    *(
                        decimals(found[f"recall@{k}"][side], 4)
                        for k in (10, 100)
                        for side in ("proponents", "opponents")
                    ),
                ]
            )
    header = [
        "Preset", "Queries", "Prefilter", "LDS, exact scores", "LDS, approximate scores", "Proponents found of 10",
        "Opponents found of 10", "Proponents found of 100", "Opponents found of 100",
    ]  # fmt: skip
    yield sourced(table(header, rows), name)
    yield f"""\
What this does not show: corpora of millions of rows. Here {first["rows"]:,} rows were searched, in blocks of
256."""
    yield provenance(
        name,
        _command("prefilter", "TESTBED/evaluation.yaml", name),
    )


def _two_stage() -> Iterator[str]:
    name, result = "twostage.json", load("twostage.json")
    yield "### Search in two stages {#two-stage}"
    yield """\
The two-stage search keeps a small part of every code in memory, ranks all rows by it, and reads the whole
codes of the best candidates only. Scores that it shows are exact, but it misses rows. The first table compares
the product's searches on the large testbed: the share of the strongest rows of an exact scan that each finds,
and the share of the codes' bytes that it reads."""
    product = [
        [
            _SEARCHES.get(row["search"], row["search"]),
            str(row["top_k"]),
            decimals(row["proponents"], 3),
            decimals(row["opponents"], 3),
            decimals(row["bytes_read"], 3),
        ]
        for row in result["product"]
    ]
    yield sourced(table(["Search", "First k", "Proponents found", "Opponents found", "Bytes read"], product), name)
    yield f"""\
The second table compares ways to choose the part that is kept in memory, with {result["queries"]} queries and
codes of {result["bytes_per_row"]:,} bytes (`{result["method"]}`). A term of one layer is kept whole or not at
all. Bytes read count the kept part of every row and the whole codes of the candidates of one side."""
    curve = [
        [
            _CHOICES[row["columns"]],
            decimals(row["bytes"], 1),
            str(row["candidates"]),
            decimals(row["share_of_bytes"], 3),
            *(decimals(row[f"{side}@{k}"], 3) for k in (10, 100) for side in ("proponents", "opponents")),
        ]
        for row in result["curve"]
        if row["candidates"] in _CURVE_CANDIDATES
    ]
    header = [
        "Kept in memory", "Bytes of a row", "Candidates", "Bytes read", "Proponents of 10", "Opponents of 10",
        "Proponents of 100", "Opponents of 100",
    ]  # fmt: skip
    yield sourced(table(header, curve), name)
    yield f"""\
A tenth of the bytes nearly suffices for the ten strongest proponents. It does not suffice for opponents or for
the first hundred, whose scores lie close together. For this reason the two-stage search is an option, and
every other search reads all codes. What this does not show: other codes, and corpora larger than
{result["rows"]:,} rows."""
    yield provenance(
        name,
        _command("twostage", "TESTBED/evaluation.yaml", name),
    )


def _self_influence() -> Iterator[str]:
    name = "self-influence.json"
    yield "### Self-influence of codes {#self-influence}"
    yield """\
The self-influence of an example is computed from its code, which is not the full gradient. Measured with the
model and corpus of the demo: the ratio of the code's self-influence to that of the full gradient (median, with
the 5th and 95th percentile), and the rank correlation of the two. The other columns are rank correlations of
scores with those of full gradients: of cosines whose s(x, x) is that of the code, as in an index; of cosines
whose s(x, x) is that of the full gradient, which an index does not keep; and of scores that are not
normalised. The last column compares scores with exact ones: those of gradients that are neither projected nor
coded, over the layers that the preset tracks, in the preset's metric."""
    rows = [
        [
            code(row["preset"]),
            f"{row['ratio'][1]:.2f} [{row['ratio'][0]:.2f}, {row['ratio'][2]:.2f}]",
            *(
                decimals(row[key], 3)
                for key in ("own_correlation", "cosine_decoded", "cosine_full", "not_normalised", "exact")
            ),
        ]
        for row in load(name)["presets"]
    ]
    header = [
        "Preset", "Ratio", "Correlation of self-influences", "Cosine, by code", "Cosine, by full gradient",
        "Not normalised", "Exact scores",
    ]  # fmt: skip
    yield sourced(table(header, rows), name)
    yield """\
Use self-influences for ranking; their size is not that of full gradients. What this does not show: models
other than the demo's small one."""
    yield provenance(
        name,
        "make demo",
        "python -m benchmarks.self_influence demo-out/config.json --out benchmarks/results/self-influence.json",
    )


def _policies() -> Iterator[str]:
    name = "continued/policies.json"
    results = by_method(name)
    yield "### Update policies at a new checkpoint {#policies}"
    yield """\
The model of the small testbed is trained on three quarters of its corpus, then on the rest. An index of the
first part, made at the first checkpoint, is updated to the second by each policy. `stale` is an index of all
rows at the first checkpoint, asked there; `rebuild` is an index of all rows at the second. LDS is measured at
the second checkpoint."""
    rows = []
    for method, policies in results.items():
        for policy, result in policies.items():
            difference = result["minus_rebuild"]
            rows.append(
                [
                    method_name(method),
                    code(policy),
                    interval(result["lds"]),
                    "" if difference is None else signed_interval(difference),
                    decimals(result["seconds"], 1),
                ]
            )
    yield sourced(table(["Method", "Policy", "LDS", "LDS minus rebuild", "Seconds"], rows), name)
    yield "The drift that `auto` measured on a sample of the old rows:"
    drifts = [
        [method_name(method), decimals(older["cosine"], 2), decimals(older["score_correlation"], 2)]
        for method, policies in results.items()
        for older in policies["auto"]["older_rows"]
    ]
    yield sourced(table(["Method", "Cosine of old and new gradients", "Rank correlation of scores"], drifts), name)
    yield f"""\
{_distinct_policies(results)} With the default `update.max_drift`, `auto` would have computed all of these old
rows again; in this benchmark it was made to let them follow. At this size most of the seconds are spent
starting workers, on a machine that was busy with other work. What this does not show: larger models, or
training that changes the model more."""
    yield provenance(
        name,
        "python -m benchmarks.quality.continued TESTBED OUT",
        _command("policies", "TESTBED", "continued"),
    )


def _distinct_policies(results: dict[str, Any]) -> str:
    """A sentence on the policies whose LDS differs from that of a rebuild by more than chance explains."""
    distinct = [
        f"{method_name(method)} {code(policy)}"
        for method, policies in results.items()
        for policy, result in policies.items()
        if result["minus_rebuild"] and not result["minus_rebuild"][1] <= 0 <= result["minus_rebuild"][2]
    ]
    if not distinct:
        return "The intervals of all differences from the rebuild include zero."
    return f"The differences from the rebuild whose intervals exclude zero are those of {', '.join(distinct)}."


def _merging() -> Iterator[str]:
    name = "continued/merging.json"
    yield "### Merged curvature {#merging}"
    yield """\
An update fits the curvature of the new rows and merges it with the old one. Here the rows of the index above
are fitted in pieces and merged one after another, and compared with one fit over all rows: the rank
correlation of scores, and LDS."""
    rows = [
        [
            method_name(method),
            kind,
            decimals(result["spearman"], 4),
            interval(result["lds"], 4),
            "" if result["minus_refit"] is None else signed_interval(result["minus_refit"], 4),
        ]
        for method, kinds in by_method(name).items()
        for kind, result in kinds.items()
    ]
    header = ["Method", "Fit", "Rank correlation with one fit", "LDS", "LDS minus one fit"]
    yield sourced(table(header, rows), name)
    yield """\
The preset `quality` works without a curvature; its rows are here because their flat spectrum is the hardest
case for merging. What this does not show: hundreds of merges in a row."""
    yield provenance(name, _command("merging", "TESTBED", "continued"))
