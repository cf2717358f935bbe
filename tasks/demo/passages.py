"""Cuts reference prose into passages: training examples that are long enough to make sense on their own."""

import itertools
import re
from collections.abc import Iterator

# in characters, because characters (unlike words) predict the number of tokens equally well in prose and in code
ENOUGH_CHARS = 380
_MAX_CHARS = 900
_TITLE_CHARS = 120
_MIN_WORDS = 12

_UNDERLINE = re.compile(r"^([*=\-~^\"#])\1{2,}$")


def normalise(text: str) -> str:
    """A text in lower case with single spaces, to compare texts independent of case and white space."""
    return " ".join(text.lower().split())


def passages(text: str) -> Iterator[str]:
    """Passages of a text, in order, each inside one section; headings lose their underline.

    Sections are cut independently, so a section that another text quotes is cut in the same way there.
    """
    headings: list[str] = []
    for section in _sections(text):
        if len(section) == 1 and _is_heading(section[0]):
            headings += section  # a title directly above another title belongs to the text that follows
        else:
            yield from _pack([_plain(block) for block in (*headings, *section)])
            headings = []


def _sections(text: str) -> Iterator[list[str]]:
    """Lists of blocks (separated by blank lines in the source); the first block is the section's heading."""
    section: list[str] = []
    for block in _blocks(text):
        if _is_heading(block) and section:
            yield section
            section = []
        section.append(block)
    if section:
        yield section


def _blocks(text: str) -> list[str]:
    """Blocks that blank lines separate; each row of a table becomes a block of its own, without the frame."""
    blocks: list[str] = []
    for block in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
        is_table = block.lstrip().startswith("+--")
        blocks.extend(_table_rows(block) if is_table else [block])
    return blocks


def _table_rows(table: str) -> Iterator[str]:
    """Every row of a framed table as `cell: cell`; cells may span several lines."""
    for row in re.split(r"^\s*[+|][-=+|]+$", table, flags=re.MULTILINE):
        lines = [re.split(r"\s\|\s", line.strip()[1:-1] + " ") for line in row.strip().splitlines()]
        cells = [" ".join(" ".join(parts).split()) for parts in itertools.zip_longest(*lines, fillvalue="")]
        if any(cells):
            yield "   " + ": ".join(cell for cell in cells if cell)


def _is_heading(block: str) -> bool:
    lines = block.splitlines()
    underlined = len(lines) == 2 and bool(_UNDERLINE.match(lines[1]))
    return underlined or block == "-[ Footnotes ]-"


def _plain(block: str) -> str:
    return block.splitlines()[0] if _is_heading(block) else block


def _pack(blocks: list[str]) -> Iterator[str]:
    """Join consecutive blocks into passages; a short last passage joins the one before it if there is room."""
    pieces = [blocks[0]]
    for block in blocks[1:]:
        if _belongs_to(pieces[-1], block):
            pieces[-1] += f"\n\n{block}"
        else:
            pieces.append(block)
    if len(pieces) > 1 and len(pieces[-1]) < ENOUGH_CHARS // 2 and len(pieces[-2]) < _MAX_CHARS:
        last = pieces.pop()
        pieces[-1] += f"\n\n{last}"
    return (piece for piece in pieces if len(piece.split()) >= _MIN_WORDS)


def _belongs_to(piece: str, block: str) -> bool:
    """Whether `block` continues `piece`: the piece is still short, or the block is indented or follows a colon."""
    if len(piece) < _TITLE_CHARS:
        return True
    continues = block.startswith(" ") or piece.endswith(":")
    return (continues or len(piece) < ENOUGH_CHARS) and len(piece) + len(block) <= _MAX_CHARS
