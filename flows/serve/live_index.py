"""The newest generation, open, with its model and codes in memory; a newer one takes its place as a whole.

Questions in flight finish on the generation that they began with. Where a newer one cannot be opened, the former
goes on answering, and the reason is told.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flows.questions import open_for_questions
from lorif_core.config import ModelConfig
from lorif_core.errors import LorifError
from lorif_core.search.index import Index
from lorif_core.storage.faults import one_line

log = logging.getLogger(__name__)

SearchKind = Literal["full", "two-stage"]
_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Opened:
    """A generation, where its newest checkpoint is, and whether it is searched in two stages."""

    index: Index
    checkpoint: ModelConfig
    columns: tuple[str, ...]
    resident_bytes: int
    two_stage: bool

    @property
    def search(self) -> SearchKind:
        """As answers name it."""
        return "two-stage" if self.two_stage else "full"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the newest generation does not answer: its number, if it is known, and a sentence."""

    generation: int | None
    message: str


class Newest:
    """The generation that answers.

    Args:
        uri: the index.
        overrides: `storage.*` and `model.*` as on the command line.
        model: where its checkpoint is now, if elsewhere.
        memory_gb: GiB for codes and what queries are folded with; half of it for a generation, so that the next
            one fits in beside it.
        two_stage: search in two stages, and keep what that begins with instead of codes.

    Raises:
        UserError: there is no index, no generation, or its checkpoint is not there; or it cannot be searched in
            two stages, or not within the memory.
    """

    def __init__(
        self, uri: str, overrides: Sequence[str], model: str | None, memory_gb: float, *, two_stage: bool = False
    ) -> None:
        self._uri, self._overrides, self._model = uri, overrides, model
        self.two_stage = two_stage
        self.name = uri.rstrip("/").rpartition("/")[2] or uri
        self.memory_bytes = int(memory_gb * 2**30)
        self.current = self._open(None)
        self.trouble: Trouble | None = None
        self._retry_at = 0.0

    def refresh(self) -> None:
        """Look for a newer generation and let it take over; blocks while it is opened."""
        newest: int | None = None
        try:
            newest = self.current.index.store.latest().generation
            if newest == self.current.index.generation.generation:
                self.trouble = None
                return
            if self.trouble and self.trouble.generation == newest and time.monotonic() < self._retry_at:
                return
            self.current = self._open(self.current)
            self.trouble = None
            log.info("generation %d answers", self.current.index.generation.generation)
        except Exception as error:  # noqa: BLE001 - the former generation goes on
            told = str(error) if isinstance(error, LorifError) else f"{type(error).__name__}: {one_line(error)}"
            if self.trouble is None or self.trouble.generation != newest:
                log.warning("the newest generation cannot be opened, the former answers: %s", told)
            self.trouble = Trouble(newest, told)
            self._retry_at = time.monotonic() + _RETRY_SECONDS

    def _open(self, former: Opened | None) -> Opened:
        index, checkpoint = open_for_questions(self._uri, self._overrides, self._model)
        for part in index.parts:
            for earlier in () if former is None else former.index.parts:
                part.take_over(earlier)
        index.encoders(checkpoint)
        held = 0
        for part in reversed(index.parts):  # the newest rows first
            held += part.keep_resident(self.memory_bytes // 2 - held, two_stage=self.two_stage)
        columns = index.store.rows.descriptive_columns(index.generation.factors_version)
        return Opened(index, checkpoint, tuple(columns), held, self.two_stage)
