"""Holds the numbers that pages quote from benchmarks against the JSON files that have them.

A block (a paragraph, list or table: lines without a blank line between them) that quotes a measured number
stands below a comment, on the line above it or with blank lines between, that names the files the number is
from:

    <!-- from benchmarks/results/quality-large/lds.json -->
    `balanced` reaches an LDS of .603 with 4,228 bytes for each example.

Every decimal number (`.603`, `1.6`) and every number with thousands separators (`4,228`, `195,000`) in the
block must occur in one of these files at the precision that is printed; `195,000` is a number rounded to
thousands, and `1.2 %` is 0.012. Several files are separated by commas. A number from a publication stands
below `<!-- from arXiv 2601.21929 -->`, and one that nobody measured (an example, a definition) below `<!-- not
a measurement -->`.

A block that speaks of LDS or of a rate (rows, tokens, questions or queries per second) and has such a number
must stand below a comment. Code blocks and inline code are not looked at.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COMMENT = re.compile(r"^\s*<!-- (from [^>]+|not a measurement) -->[ \t]*\n?")
_RESULT_FILE = re.compile(r"benchmarks/results/[\w/.-]+\.json")
_PUBLICATION = re.compile(r"arXiv \d{4}\.\d{4,5}")
_CLAIM = re.compile(
    r"\bLDS\b|\b(rows|tokens|questions|queries)(/s\b| a second\b| per second\b| each second\b)", re.I
)
_FENCED = re.compile(r"^([ \t]*)(```|~~~).*?^[ \t]*\2[ \t]*$", re.M | re.S)
_NOT_TEXT = re.compile(r"`[^`\n]*`|\]\([^)\s]*\)|https?://\S+|arXiv:? ?\d+\.\d+|<!--.*?-->", re.S)
_NUMBER = re.compile(r"(?<![\w.,])[-+\u2212]?(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+)(?![\d]|[.,]\d)(\s?%)?")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as a page prints it: the value, its sign if one is printed, and half a unit of its last digit."""

    text: str
    value: float
    has_sign: bool
    tolerance: float

    def is_rounding_of(self, measured: float) -> bool:
        """Whether a measured value is printed like this. Without a printed sign, only sizes are compared."""
        size = measured if self.has_sign else abs(measured)
        return abs(size - self.value) <= self.tolerance * (1 + 1e-9)


def problems(text: str, repository: Path) -> Iterator[str]:
    """What is wrong with the numbers of a page, one sentence each."""
    for source, block in sourced_blocks(text):
        numbers = list(numbers_in(block))
        if source is None:
            if numbers and _CLAIM.search(_plain(block)):
                yield f"the block {_start(block)!r} has {numbers[0].text} and no comment that names its source"
        elif source.startswith("from ") and not _PUBLICATION.fullmatch(source.removeprefix("from ")):
            yield from _unknown_numbers(source.removeprefix("from "), numbers, block, repository)


def sourced_blocks(text: str) -> Iterator[tuple[str | None, str]]:
    """The blocks of a page, each with the text of the comment above it or None."""
    source = None
    for block in re.split(r"\n[ \t]*\n", _FENCED.sub("\n\n", text)):
        comment = _COMMENT.match(block)
        if comment:
            source, block = comment[1], block[comment.end() :]
        if block.strip():
            yield source, block
            source = None


def numbers_in(block: str) -> Iterator[Number]:
    """The decimal numbers and the numbers with thousands separators of a block."""
    for found in _NUMBER.finditer(_plain(block)):
        yield _number(found[0].strip(), found[1], is_percentage=found[2] is not None)


def _number(text: str, digits: str, is_percentage: bool) -> Number:
    plain = digits.replace(",", "")
    decimals = len(plain.partition(".")[2])
    zeros = 0 if decimals else len(plain) - len(plain.rstrip("0"))
    scale = 100.0 if is_percentage else 1.0
    sign = -1.0 if text[0] in "-\u2212" else 1.0
    value = sign * float(plain) / scale
    return Number(text, value, text[0] in "-\u2212+", 0.5 * 10.0 ** (zeros - decimals) / scale)


def _plain(block: str) -> str:
    return _NOT_TEXT.sub(" ", block)


def _unknown_numbers(source: str, numbers: Iterable[Number], block: str, repository: Path) -> Iterator[str]:
    """Numbers of a block that none of its files has, and files that are not there."""
    measured: list[float] = []
    for name in re.split(r",\s*", source):
        if not _RESULT_FILE.fullmatch(name) or not (repository / name).is_file():
            yield f"the source {name!r} of the block {_start(block)!r} is no file of benchmarks/results"
            return
        measured += values_in(json.loads((repository / name).read_text(encoding="utf-8")))
    for number in numbers:
        if not any(number.is_rounding_of(value) for value in measured):
            yield f"the block {_start(block)!r} has {number.text}, which {source} does not have"


def values_in(tree: Any) -> list[float]:
    """All numbers of a result, but those of its run record."""
    if isinstance(tree, dict):
        return [value for key, branch in tree.items() if key != "run" for value in values_in(branch)]
    if isinstance(tree, list):
        return [value for branch in tree for value in values_in(branch)]
    return [float(tree)] if isinstance(tree, int | float) and not isinstance(tree, bool) else []


def _start(block: str) -> str:
    return " ".join(block.split())[:60]
