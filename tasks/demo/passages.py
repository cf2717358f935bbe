"""Cuts reference prose into passages: training examples long enough to mean something on their own."""

import itertools
import re
from collections.abc import Iterator

# In characters, because characters (unlike words) predict tokens equally well in prose and in code.
ENOUGH_CHARS = 380
_MOST_CHARS = 900
_TITLE_CHARS = 120
_FEWEST_WORDS = 12

_UNDERLINE = re.compile(r"^([*=\-~^\"#])\1{2,}$")


def normalise(text: str) -> str:
    """The same for texts that differ only in case or white space."""
    return " ".join(text.lower().split())


def passages(text: str) -> Iterator[str]:
    """Passages of a text, in order, each inside one section; headings lose the line drawn under them.

    Sections are cut one by one, so a section that another text quotes is cut alike there.
    """
    headings: list[str] = []
    for section in _sections(text):
        if len(section) == 1 and _is_heading(section[0]):
            headings += section  # a title directly above another title goes with what follows
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
    """What blank lines separate; each row of a table becomes a block of its own, without the frame."""
    blocks: list[str] = []
    for block in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
        is_table = block.lstrip().startswith("+--")
        blocks.extend(_table_rows(block) if is_table else [block])
    return blocks


def _table_rows(table: str) -> Iterator[str]:
    """`cell: cell` for every row of a framed table; cells may span several lines."""
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
    """Join consecutive blocks into passages; a short last one joins its predecessor where there is room."""
    pieces = [blocks[0]]
    for block in blocks[1:]:
        if _belongs_to(pieces[-1], block):
            pieces[-1] += f"\n\n{block}"
        else:
            pieces.append(block)
    if len(pieces) > 1 and len(pieces[-1]) < ENOUGH_CHARS // 2 and len(pieces[-2]) < _MOST_CHARS:
        last = pieces.pop()
        pieces[-1] += f"\n\n{last}"
    return (piece for piece in pieces if len(piece.split()) >= _FEWEST_WORDS)


def _belongs_to(piece: str, block: str) -> bool:
    """Whether `block` continues `piece`: it is still short, or the block is what it announces or explains."""
    if len(piece) < _TITLE_CHARS:
        return True
    continues = block.startswith(" ") or piece.endswith(":")
    return (continues or len(piece) < ENOUGH_CHARS) and len(piece) + len(block) <= _MOST_CHARS
