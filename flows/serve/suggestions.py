"""Questions that the empty page suggests: passages of the index, each cut into a prompt and its continuation.

Of conversations these are the turns up to the first of the assistant.
"""

import re
from collections.abc import Sequence

from pydantic import BaseModel, Field

from flows.serve.live_index import LiveIndex
from lorif_core.corpus.messages import ASSISTANT
from lorif_core.corpus.turns import TEMPLATE, Turn, turns_from_json
from lorif_core.search.index import Index
from lorif_core.tables.checksums import TEXT, TURNS

_COUNT = 3
_WORDS = 8  # at most, of the prompt, and of the continuation
_MIN_WORDS = 4
_CHARACTERS = 24  # at most, of each, where a script has no spaces between words
_MIN_CHARACTERS = 12
_WORD = re.compile(r"\S+")
_USER = "user"
_ROLES = {"system", _USER, ASSISTANT}

_Row = tuple[str | None, str | None]
"""The text of an example, and its turns as they are stored."""


class Message(BaseModel):
    """A message of a conversation."""

    role: str = Field(description="Who speaks.")
    content: str = Field(description="What is said.")


class Suggestion(BaseModel):
    """A question: the beginning of a passage and how it goes on, or a conversation."""

    prompt: str | None = Field(default=None, description="The beginning of a passage; null for a conversation.")
    completion: str | None = Field(default=None, description="How the passage goes on; null for a conversation.")
    messages: list[Message] | None = Field(
        default=None, description="A conversation up to the first turn of the assistant; null for a passage."
    )


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
            self._suggestions = Suggestions(suggestions=_suggested(index))
            self._generation = index.generation.generation
        return self._suggestions


def _suggested(index: Index) -> list[Suggestion]:
    version, rows = index.generation.factors_version, index.store.rows
    fragments, columns = rows.fragment_ids(version), rows.descriptive_columns(version)
    if not fragments or TEXT not in columns:
        return []
    names = [TEXT, TURNS] if TURNS in columns else [TEXT]
    spread = sorted({fragments[place * (len(fragments) - 1) // (_COUNT - 1)] for place in range(_COUNT)})
    chosen: list[tuple[str, str | None]] = []
    for number, fragment in enumerate(spread):
        batch = next(rows.metadata(version, names, [fragment]), None)
        wanted = _COUNT - len(chosen) if number == len(spread) - 1 else 1
        if batch is not None:
            turns = batch.column(TURNS).to_pylist() if TURNS in names else [None] * batch.num_rows
            chosen += _spread(list(zip(batch.column(TEXT).to_pylist(), turns, strict=True)), wanted)
    return [_conversation(text, turns_from_json(turns)) if turns else _cut(text) for text, turns in chosen]


def _spread(rows: Sequence[_Row], wanted: int) -> list[tuple[str, str | None]]:
    """Some rows that can be asked about, as far apart as possible."""
    usable = list(
        dict.fromkeys(
            (text, turns) if turns else (text.strip(), None)
            for text, turns in rows
            if text is not None and (_is_question(turns_from_json(turns)) if turns else _is_long(text))
        )
    )
    wanted = min(wanted, len(usable))
    return [usable[place * len(usable) // wanted] for place in range(wanted)]


def _up_to_the_answer(turns: Sequence[Turn]) -> list[Turn]:
    """The turns up to the first of the assistant, without what only the template has."""
    spoken = [turn for turn in turns if turn.role != TEMPLATE]
    first = next((place for place, turn in enumerate(spoken) if turn.role == ASSISTANT), -1)
    return spoken[: first + 1]


def _is_question(turns: Sequence[Turn]) -> bool:
    """Whether a user and the assistant speak, and nobody else but the system."""
    roles = {turn.role for turn in _up_to_the_answer(turns)}
    return {_USER, ASSISTANT} <= roles <= _ROLES


def _conversation(text: str, turns: Sequence[Turn]) -> Suggestion:
    said = ((turn.role, text[turn.start : turn.end]) for turn in _up_to_the_answer(turns))
    return Suggestion(messages=[Message(role=role, content=content) for role, content in said])


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
