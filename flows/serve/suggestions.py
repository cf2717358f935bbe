"""Questions that the empty page suggests: passages of the index, each cut into a prompt and its continuation."""

import re

from pydantic import BaseModel, Field

from flows.serve.live_index import LiveIndex
from lorif_core.search.index import Index

_COUNT = 3
_WORDS = 8  # at most, of the prompt, and of the continuation
_MIN_WORDS = 4
_CHARACTERS = 24  # at most, of each, where a script has no spaces between words
_MIN_CHARACTERS = 12
_WORD = re.compile(r"\S+")


class Suggestion(BaseModel):
    """A question: the beginning of a passage, and how it goes on."""

    prompt: str = Field(description="The beginning of a passage.")
    completion: str = Field(description="How the passage goes on.")


class Suggestions(BaseModel):
    """Questions to begin with."""

    suggestions: list[Suggestion] = Field(description="At most three; none if the index stores no texts.")


class SuggestedQuestions:
    """The suggestions of the generation that answers; made once for each generation.

    Args:
        live_index: holds that generation.
    """

    def __init__(self, live_index: LiveIndex) -> None:
        self._live_index = live_index
        self._generation: int | None = None
        self._suggestions = Suggestions(suggestions=[])

    def current(self) -> Suggestions:
        """Suggestions from rows that are spread over the index; reads a batch of texts of three fragments."""
        index = self._live_index.current.index
        if index.generation.generation != self._generation:
            self._suggestions = Suggestions(suggestions=[_cut(text) for text in _texts(index)])
            self._generation = index.generation.generation
        return self._suggestions


def _texts(index: Index) -> list[str]:
    version, rows = index.generation.factors_version, index.store.rows
    fragments = rows.fragment_ids(version)
    if not fragments or "text" not in rows.descriptive_columns(version):
        return []
    spread = sorted({fragments[place * (len(fragments) - 1) // (_COUNT - 1)] for place in range(_COUNT)})
    texts: list[str] = []
    for number, fragment in enumerate(spread):
        batch = next(rows.metadata(version, ["text"], [fragment]), None)
        wanted = _COUNT - len(texts) if number == len(spread) - 1 else 1
        texts += [] if batch is None else _spread(batch.column("text").to_pylist(), wanted)
    return texts


def _spread(texts: list[str | None], wanted: int) -> list[str]:
    """Some texts that are long enough to be cut, as far apart as possible."""
    long_enough = list(dict.fromkeys(text.strip() for text in texts if text is not None and _is_long(text)))
    wanted = min(wanted, len(long_enough))
    return [long_enough[place * len(long_enough) // wanted] for place in range(wanted)]


def _is_long(text: str) -> bool:
    words = text.split(maxsplit=_MIN_WORDS)
    return len(words) >= _MIN_WORDS or (len(words) == 1 and len(text.strip()) >= _MIN_CHARACTERS)


def _cut(text: str) -> Suggestion:
    words = list(_WORD.finditer(text[:10_000]))
    if len(words) < _MIN_WORDS:
        half = min(_CHARACTERS, len(text) // 2)
        return Suggestion(prompt=text[:half], completion=text[half : 2 * half])
    half = min(_WORDS, len(words) // 2)
    middle, end = words[half - 1].end(), words[min(half + _WORDS, len(words)) - 1].end()
    return Suggestion(prompt=text[:middle], completion=text[middle:end])
