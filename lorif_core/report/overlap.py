"""Finds the words that an example's text shares with a query, in time linear in both lengths.

Two adjacent words are shared if they are also adjacent in the query. A single word is shared if it occurs in the
query. A pair of stop words does not count, nor does a single stop word or a single short word. Case is ignored.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u0e00-\u0e7f\u3040-\u9fff]+")
"""In scripts without spaces (Thai, kana, Han) every character is a word."""
_MIN_SINGLE_WORD_LETTERS = 4
_STOP_WORD_LIST = """
    a about an and are as at be been but by can could did do does for from had has have he her his how i if in
    into is it its may no not of on or our she should so some such than that the their them then there these
    they this to was we were what when where which who will with would you your
"""
STOP_WORDS = frozenset(_STOP_WORD_LIST.split())


class Overlap:
    """Finds the words that texts share with one query.

    Args:
        texts: the texts of the query. Words of different texts are not adjacent.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._words: set[str] = set()
        self._pairs: set[tuple[str, str]] = set()
        for text in texts:
            words = [word for word, _, _ in words_of(text)]
            self._words.update(
                word for word in words if len(word) >= _MIN_SINGLE_WORD_LETTERS and word not in STOP_WORDS
            )
            self._pairs.update(pairwise(words))

    def spans(self, text: str) -> tuple[tuple[int, int], ...]:
        """(start, end) in characters of the words that a text shares with the query, ascending and disjoint."""
        words = list(words_of(text))
        is_query_pair = [(left[0], right[0]) in self._pairs for left, right in pairwise(words)]
        is_shared = [word in self._words for word, _, _ in words]
        for i, (left, right) in enumerate(pairwise(words)):
            if is_query_pair[i] and not (left[0] in STOP_WORDS and right[0] in STOP_WORDS):
                is_shared[i] = is_shared[i + 1] = True
        spans: list[tuple[int, int]] = []
        for i, (_, start, end) in enumerate(words):
            if not is_shared[i]:
                continue
            if i and is_shared[i - 1] and is_query_pair[i - 1]:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        return tuple(spans)


def words_of(text: str) -> Iterable[tuple[str, int, int]]:
    """Words of a text in casefolded form, each with its start and end."""
    return ((match[0].casefold(), match.start(), match.end()) for match in _WORD.finditer(text))
