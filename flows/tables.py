"""Lines of text for people: evaluation results, the changes of an update, and totals of scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorif_core.formatting import format_bytes, format_seconds

_MAX_TOTALS = 20


def lds_text(summary: Mapping[str, Any]) -> str:
    """The LDS of every method with its interval and bytes per example, and differences of methods."""
    lines = [
        f"{row['method']:<40} {row['lds']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  {_bytes(row)}"
        for row in summary["methods"]
    ]
    lines += [
        f"{row['first']} - {row['second']}: {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        for row in summary["differences"]
    ]
    return "\n".join(lines)


def figures_text(summary: Mapping[str, Any]) -> str:
    """All figures of every method (and kind of planted source) with their intervals, and bytes per example."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in summary["methods"]:
        name = f"{row['method']:<40} {row.get('kind', '')}".rstrip()
        figure = f"{row['measure']} {row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"
        lines.setdefault((name, _bytes(row)), []).append(figure)
    differences = [
        f"{row['first']} - {row['second']}{', ' + row['kind'] if 'kind' in row else ''}, {row['measure']}: "
        f"{row['difference']:+.4g} [{row['low']:+.4g}, {row['high']:+.4g}]"
        for row in summary["differences"]
    ]
    searches = [
        f"{row['method']}, {row['search']}, share of the first {row['top_k']} of an exact scan: proponents "
        f"{row['proponents']:.3f}, opponents {row['opponents']:.3f}, bytes read {row['bytes_read']:.3f}"
        for row in summary.get("search", ())
    ]
    methods = ["  ".join([name, *figures, size]).rstrip() for (name, size), figures in lines.items()]
    return "\n".join([*methods, *differences, *searches])


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
    lines.append(
        f"the update took {format_seconds(change['update_seconds']['all'])}; a rebuild would take an estimated "
        f"{format_seconds(change['rebuild_seconds_estimated']['all'])}"
    )
    lines.append(
        f"strongest proponents of {len(change['queries'])} questions: {proponents['new_data']} from new data, "
        f"{proponents['risen']} risen, {proponents['stayed']} stayed"
    )
    return lines


def totals_text(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    """The sums of scores by a column that are furthest from zero."""
    strongest = sorted(rows, key=lambda row: -abs(row["total"]))[:_MAX_TOTALS]
    lines = [
        f"  {row['total']:+.4g}  ({row['positive']:+.4g} of {row['proponents']:,} rows, {row['negative']:+.4g} of "
        f"{row['opponents']:,})  {row[by]}"
        for row in sorted(strongest, key=lambda row: -row["total"])
    ]
    return "\n".join([f"totals by {by}, {len(lines)} of {len(rows):,}", *lines])


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


def _bytes(row: Mapping[str, Any]) -> str:
    return "" if row["bytes_per_example"] is None else f"{row['bytes_per_example']:>12,.0f} bytes"
