"""What commands print for people: plans, evaluation results, the changes of an update, and totals of scores."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.terminal import table
from lorif_core.formatting import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_MAX_TOTALS = 20
_EXCERPT = 160
_CONTRIBUTIONS = 5


def lds_text(summary: Mapping[str, Any]) -> "RenderableType":
    """The LDS of every method with its interval and bytes per example, and differences of methods."""
    rows = [[row["method"], f"{row['lds']:.3f}", _interval(row, ".3f"), _bytes(row)] for row in summary["methods"]]
    differences = [
        [f"{row['first']} - {row['second']}", f"{row['difference']:+.3f}", _interval(row, "+.3f"), ""]
        for row in summary["differences"]
    ]
    titles = ["method", "LDS", "interval", "bytes per example"]
    return table(titles, rows + differences, numbers=titles[1:])


def figures_text(summary: Mapping[str, Any]) -> "RenderableType":
    """All figures of every method (and kind of planted source) with their intervals, and bytes per example."""
    rows = [
        [
            row["method"],
            row.get("kind", ""),
            row["measure"],
            f"{row['value']:.4g}",
            _interval(row, ".4g"),
            _bytes(row),
        ]
        for row in summary["methods"]
    ]
    rows += [
        [f"{row['first']} - {row['second']}", row.get("kind", ""), row["measure"], f"{row['difference']:+.4g}",
         _interval(row, "+.4g"), ""]
        for row in summary["differences"]
    ]  # fmt: skip
    titles = ["method", "kind", "measure", "value", "interval", "bytes per example"]
    figures = table(titles, rows, numbers=titles[3:])
    searches = [
        f"{row['method']}, {row['search']}, share of the first {row['top_k']} of an exact scan: proponents "
        f"{row['proponents']:.3f}, opponents {row['opponents']:.3f}, bytes read {row['bytes_read']:.3f}"
        for row in summary.get("search", ())
    ]
    if not searches:
        return figures
    from rich.console import Group

    return Group(figures, *searches)


def step_table(data: Mapping[str, Any]) -> "Table":
    """The time and the peak memory of each step of a build, as `lorif check` estimates them."""
    rows = []
    for step in dict.fromkeys([*data["seconds"], *data["memory"]]):
        peak = data["memory"].get(step, {})
        sizes = [
            format_bytes(peak[kind]) if peak.get(kind) is not None else "" for kind in ("estimate", "measured")
        ]
        seconds = data["seconds"].get(step)
        rows.append([step, "" if seconds is None else format_seconds(seconds), *sizes])
    titles = ["step", "time", "peak memory, estimated", "measured"]
    return table(titles, rows, numbers=titles[1:])


def plan_sentence(data: Mapping[str, Any]) -> str:
    """What a build will take, in plain words, from the values of `lorif check`."""
    workers = "one worker" if data["workers"] == 1 else f"{data['workers']} workers"
    duration = _about(sum(data["seconds"].values()))
    return (
        f"{data['examples']:,} examples with {data['tokens']:,} tokens will take {duration} on {workers}, "
        f"and the index {format_bytes(data['index_bytes'])}."
    )


def _about(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    minutes = round(seconds / 60)
    if minutes < 120:
        return "about a minute" if minutes == 1 else f"about {minutes} minutes"
    return f"about {round(minutes / 60):,} hours"


def change_lines(change: Mapping[str, Any]) -> list[str]:
    """The changes of a newer generation: its rows, their drift, the cost, the proponents."""
    rows, size, proponents = change["rows"], change["bytes"], change["proponents"]
    lines = [
        f"since generation {change['former_generation']}: {rows['after']:,} rows ({rows['before']:,} before), "
        f"codes of {format_bytes(size['after'])} ({format_bytes(size['before'])} before)"
    ]
    for older in change["older_rows"]:
        correlation = older["score_correlation"]
        scores = "" if correlation is None else f", rank correlation of their scores {correlation:.3f}"
        outcome = "follow the new checkpoint" if older["decision"] == "follows" else "were computed again"
        lines.append(
            f"old and new gradients of {older['sampled']:,} of {older['rows']:,} old rows: cosine "
            f"{older['cosine']:.3f}{scores}; the rows {outcome}"
        )
    lines.append(_recording_line(change["recorded"]) if "recorded" in change else _update_line(change))
    lines.append(
        f"strongest proponents of {len(change['queries'])} questions: {proponents['new_data']} from new data, "
        f"{proponents['risen']} risen, {proponents['stayed']} stayed"
    )
    return lines


def _update_line(change: Mapping[str, Any]) -> str:
    return (
        f"the update took {format_seconds(change['update_seconds']['all'])}; a rebuild would take an estimated "
        f"{format_seconds(change['rebuild_seconds_estimated']['all'])}"
    )


def _recording_line(recorded: Mapping[str, Any]) -> str:
    return (
        f"{recorded['rows']:,} rows were recorded while the model trained on, which took "
        f"{format_seconds(recorded['recording_seconds'])} more; the passes of a build over them take an estimated "
        f"{format_seconds(recorded['pass_seconds_estimated'])} (saved {recorded['saved']:.0%})"
    )


def ranking_text(answer: Mapping[str, Sequence[Mapping[str, Any]]]) -> "RenderableType":
    """The proponents and opponents of a query; explained ones with their strongest tokens and layers."""
    from rich.console import Group

    from lorif_core.corpus.turns import Turn, spoken_line  # imports numpy

    parts: list[Any] = []
    for side, hits in answer.items():
        rows = []
        for hit in hits:
            turns = [Turn(**turn) for turn in hit.get("turns", ())]
            excerpt = spoken_line(hit["text"] or "", turns)[:_EXCERPT]
            rows.append([str(hit["rank"]), f"{hit['score']:+.4g}", hit["example_id"], excerpt])
            if "tokens" in hit:
                rows.append(["", "", "tokens", _strongest(hit["tokens"])])
                rows.append(["", "", "layers", _strongest(hit["layers"].items())])
            if hit.get("training_tokens"):
                rows.append(["", "", "passage", _strongest(hit["training_tokens"])])
        parts += [side, table(["rank", "score", "example", "text"], rows, numbers=["rank", "score"])]
    return Group(*parts)


def _strongest(contributions: Iterable[tuple[str, float]]) -> str:
    ordered = sorted(contributions, key=lambda contribution: -abs(contribution[1]))[:_CONTRIBUTIONS]
    return ", ".join(f"{name!r} {value:+.3g}" for name, value in ordered)


def _recorded(changes: Mapping[str, Any]) -> str:
    """How the rows of a generation came about, if a training recorded them."""
    if "recorded" not in changes:
        return ""
    recorded = changes["recorded"]
    first, last = recorded["steps"]
    missing = f", {recorded['missing']:,} examples without a row" if recorded["missing"] else ""
    return f", recorded during training, steps {first} to {last}{missing}"


def generations_table(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """The generations of an index, oldest first."""
    return table(
        ["generation", "created (UTC)", "rows", "bytes per example", "checkpoint"],
        [
            [str(row["generation"]), row["created_at"][:19], f"{row['rows']:,}",
             f"{row['bytes_per_example']:,.0f}", f"{row['checkpoint']}{_recorded(row['changes'])}"]
            for row in rows
        ],
        numbers=["generation", "created (UTC)", "rows", "bytes per example"],
    )  # fmt: skip


def totals_text(rows: Sequence[Mapping[str, Any]], by: str) -> "RenderableType":
    """The sums of scores by a column that are furthest from zero."""
    from rich.console import Group

    strongest = sorted(rows, key=lambda row: -abs(row["total"]))[:_MAX_TOTALS]
    titles = ["total", "positive", "of rows", "negative", "of rows ", by]
    cells = [
        [f"{row['total']:+.4g}", f"{row['positive']:+.4g}", f"{row['proponents']:,}", f"{row['negative']:+.4g}",
         f"{row['opponents']:,}", str(row[by])]
        for row in sorted(strongest, key=lambda row: -row["total"])
    ]  # fmt: skip
    return Group(f"totals by {by}, {len(cells)} of {len(rows):,}", table(titles, cells, numbers=titles[:-1]))


def verification_text(found: Mapping[str, Any]) -> str:
    """What is damaged, how to repair it, and how much was read."""
    lines = []
    for item in found["damage"]:
        shards = f"; shards {', '.join(item['shards'])}" if item["shards"] else ""
        lines.append(f"damaged: {item['table']}: {item['what']}{shards}")
    lines += dict.fromkeys(f"{item['table']}: {item['advice']}" for item in found["damage"])
    lines.append(
        f"read {found['generations']} generations, {found['rows']:,} rows, {found['files']:,} files: "
        f"{len(found['damage'])} damaged"
    )
    if found["rows_without_checksums"] or found["files_without_digest"]:
        lines.append(
            f"an older lorif wrote {found['rows_without_checksums']:,} rows without checksums and "
            f"{found['files_without_digest']:,} files without digests; they were read, but not compared"
        )
    if "repaired" in found:
        repaired = found["repaired"]
        lines.append(
            f"published generation {repaired['generation']} without {repaired.get('rows_removed', 0):,} rows; "
            f"lorif update -c CONFIG indexes them again"
        )
    return "\n".join(lines)


def _interval(row: Mapping[str, Any], form: str) -> str:
    return f"[{row['low']:{form}}, {row['high']:{form}}]"


def _bytes(row: Mapping[str, Any]) -> str:
    return "" if row["bytes_per_example"] is None else f"{row['bytes_per_example']:,.0f}"
