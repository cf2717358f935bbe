"""What an example's text shares with a query: the same words in the same order, in time linear in both.

Two neighbouring words are shared if they are neighbours in the query too, one word alone if it is there at all.
Of these, words that most English texts have don't count, nor does one of a few letters alone. Case is ignored.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u0e00-\u0e7f\u3040-\u9fff]+")
"""Of scripts without spaces (Thai, kana, Han) every character is one."""
_LETTERS_ALONE = 4
_FILLERS = """
    a about an and are as at be been but by can could did do does for from had has have he her his how i if in into
    is it its may no not of on or our she should so some such than that the their them then there these they this
    to was we were what when where which who will with would you your
"""
_FILLER = frozenset(_FILLERS.split())


class Overlap:
    """The words of a query.

    Args:
        texts: what it consists of; words are neighbours within one of them only.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._words: set[str] = set()
        self._pairs: set[tuple[str, str]] = set()
        for text in texts:
            words = [word for word, _, _ in words_of(text)]
            self._words.update(word for word in words if len(word) >= _LETTERS_ALONE and word not in _FILLER)
            self._pairs.update(pairwise(words))

    def spans(self, text: str) -> tuple[tuple[int, int], ...]:
        """(start, end) of what a text shares with the query, ascending and disjoint, in characters."""
        words = list(words_of(text))
        together = [(one[0], two[0]) in self._pairs for one, two in pairwise(words)]
        shared = [word in self._words for word, _, _ in words]
        for place, (one, two) in enumerate(pairwise(words)):
            if together[place] and not (one[0] in _FILLER and two[0] in _FILLER):
                shared[place] = shared[place + 1] = True
        spans: list[tuple[int, int]] = []
        for place, (_, start, end) in enumerate(words):
            if not shared[place]:
                continue
            if place and shared[place - 1] and together[place - 1]:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        return tuple(spans)


def words_of(text: str) -> Iterable[tuple[str, int, int]]:
    """Words without their case, and where they start and end."""
    return ((found[0].casefold(), found.start(), found.end()) for found in _WORD.finditer(text))
