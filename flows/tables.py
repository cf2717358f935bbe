"""Summaries as lines for a person: of evaluations, of what an update changed, of totals of scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorif_core.formatting import format_bytes, format_seconds

_TOTALS = 20


def lds_text(summary: Mapping[str, Any]) -> str:
    """LDS with its interval, and bytes per example."""
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
    """All figures of a method (and kind of plant) with their intervals, and bytes per example."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in summary["methods"]:
        name = f"{row['method']:<40} {row.get('kind', '')}".rstrip()
        told = f"{row['measure']} {row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"
        lines.setdefault((name, _bytes(row)), []).append(told)
    compared = [
        f"{row['first']} - {row['second']}{', ' + row['kind'] if 'kind' in row else ''}, {row['measure']}: "
        f"{row['difference']:+.4g} [{row['low']:+.4g}, {row['high']:+.4g}]"
        for row in summary["differences"]
    ]
    searches = [
        f"{row['method']}, {row['search']}, first {row['top_k']} of an exact scan: proponents "
        f"{row['proponents']:.3f}, opponents {row['opponents']:.3f}, bytes read {row['bytes_read']:.3f}"
        for row in summary.get("search", ())
    ]
    of_methods = ["  ".join([name, *told, size]).rstrip() for (name, size), told in lines.items()]
    return "\n".join([*of_methods, *compared, *searches])


def change_lines(change: Mapping[str, Any]) -> list[str]:
    """What a newer generation changed: its rows, their drift, the cost, the proponents."""
    rows, size, told = change["rows"], change["bytes"], change["proponents"]
    lines = [
        f"since generation {change['former_generation']}: {rows['after']:,} rows ({rows['before']:,} before), "
        f"codes of {format_bytes(size['after'])} ({format_bytes(size['before'])} before)"
    ]
    for older in change["older_rows"]:
        correlation = older["score_correlation"]
        scores = "" if correlation is None else f", rank correlation of their scores {correlation:.3f}"
        fate = "follow the new checkpoint" if older["decision"] == "follows" else "were computed anew"
        lines.append(
            f"old and new gradients of {older['sampled']:,} of {older['rows']:,} old rows: cosine "
            f"{older['cosine']:.3f}{scores}; the rows {fate}"
        )
    lines.append(
        f"the update took {format_seconds(change['update_seconds']['all'])}; a rebuild, by an estimate, "
        f"{format_seconds(change['rebuild_seconds_estimated']['all'])}"
    )
    lines.append(
        f"strongest proponents of {len(change['queries'])} questions: {told['new_data']} from new data, "
        f"{told['risen']} risen, {told['stayed']} stayed"
    )
    return lines


def totals_text(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    """Sums of scores by a column, those furthest from zero."""
    strongest = sorted(rows, key=lambda row: -abs(row["total"]))[:_TOTALS]
    lines = [
        f"  {row['total']:+.4g}  ({row['positive']:+.4g} of {row['proponents']:,} rows, {row['negative']:+.4g} of "
        f"{row['opponents']:,})  {row[by]}"
        for row in sorted(strongest, key=lambda row: -row["total"])
    ]
    return "\n".join([f"totals by {by}, {len(lines)} of {len(rows):,}", *lines])


def _bytes(row: Mapping[str, Any]) -> str:
    return "" if row["bytes_per_example"] is None else f"{row['bytes_per_example']:>12,.0f} bytes"
