"""Renders the templates, and inlines style sheets and scripts into the pages."""

import base64
import hashlib
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from lorif_core import formatting
from lorif_core.report.answer_sections import QuerySection
from lorif_core.report.charts import HISTOGRAM, histogram, layer_map, passage_map
from lorif_core.report.drawing import QueryTokens, source_rows
from lorif_core.report.passage import text_pieces
from lorif_core.report.spectrum import PLOT, spectrum_plot
from lorif_core.report.turns import example_excerpt, shaded_turns, turns_in

_TEMPLATES = Path(__file__).parent / "templates"
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn the text around them


def render_template(name: str, **values: Any) -> str:
    """Fill in a template; all text in the values is escaped."""
    return _template(name).render(**values)


@cache
def assets(*names: str) -> Markup:
    """Content of some of our style sheets or scripts, for inlining as one."""
    return Markup("\n").join(Markup((_TEMPLATES / name).read_text(encoding="utf-8")) for name in names)


def csp_hash(content: str) -> str:
    """Source expression that allows an inline style sheet or script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_replace_unprintable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=formatting.format_bytes,
        count=lambda number: f"{number:,}",
        percent=formatting.format_percent,
        percentile=formatting.format_percentile,
        score=formatting.format_score,
        seconds=formatting.format_seconds,
        signed=formatting.format_signed,
        signed_percent=formatting.format_signed_percent,
        significant=formatting.format_significant,
    )
    environment.globals.update(
        example_excerpt=example_excerpt,
        chart_size=HISTOGRAM,
        histogram=histogram,
        largest_score=_largest_score,
        layer_map=layer_map,
        passage_map=passage_map,
        plot_size=PLOT,
        shaded_turns=shaded_turns,
        spectrum_plot=spectrum_plot,
        source_rows=source_rows,
        turns_in=turns_in,
        text_pieces=text_pieces,
        query_tokens=lambda query: None if query.tokens is None else QueryTokens(query),
    )
    return environment.get_template(name)


def _is_unprintable(character: str) -> bool:
    """Whether HTML forbids it (control characters, lone surrogates) or it turns the direction of other text.

    Line breaks and tabs are printable, and so are joiners, which emoji and many scripts need.
    """
    forbidden = unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
    return forbidden or character in _DIRECTIONS


def _replace_unprintable(value: Any) -> Any:
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join("\ufffd" if _is_unprintable(c) else c for c in value)


def _largest_score(query: QuerySection) -> float:
    return max((abs(hit.score) for hit in query.hits), default=0.0)
