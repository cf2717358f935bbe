"""Pieces of Markdown that the generated pages share."""

import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; line breaks and pipes in a cell are escaped."""
    lines = [_row(header), _row(["---"] * len(header)), *(_row(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def code(text: object) -> str:
    """Inline code."""
    return f"`{text}`"


def anchor(name: str) -> str:
    """A place inside a table or paragraph that links can point to."""
    return f'<a id="{name}"></a>'


def page(*blocks: str) -> str:
    """Blocks of Markdown, a blank line between them; empty ones are left out."""
    return "\n\n".join(block.strip("\n") for block in blocks if block.strip()) + "\n"


def paragraphs(docstring: str | None) -> str:
    """The text of a docstring, without the line breaks inside its paragraphs."""
    blocks = re.split(r"\n\s*\n", (docstring or "").strip())
    return "\n\n".join(" ".join(block.split()) for block in blocks)


def sentence(text: str | None) -> str:
    """A description as a sentence: one line, with a capital letter and a full stop."""
    line = " ".join((text or "").split())
    if not line:
        return ""
    return (line if line.startswith("`") else line[0].upper() + line[1:]).rstrip(".") + "."
