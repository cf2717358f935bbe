"""The generation that answers questions, with its model and codes in memory; a newer one replaces it as a whole.

Questions in progress finish on the generation that they began with. If a newer generation cannot be opened, the
current one continues to answer, and `failure` has the reason.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from flows.questions import open_for_questions
from flows.serve.errors import ApiError
from lorif_core.config import ModelConfig
from lorif_core.errors import LorifError
from lorif_core.search.index import Index
from lorif_core.storage.faults import one_line

log = logging.getLogger(__name__)

SearchKind = Literal["full", "two-stage"]
_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class OpenGeneration:
    """A generation, the location of its newest checkpoint, and whether it is searched in two stages.

    `columns` are those that a filter may use; `number_columns` are those of them that hold numbers.
    """

    index: Index
    checkpoint: ModelConfig
    columns: tuple[str, ...]
    resident_bytes: int
    two_stage: bool
    number_columns: frozenset[str] = frozenset()

    @property
    def search(self) -> SearchKind:
        """The name of the search in answers."""
        return "two-stage" if self.two_stage else "full"

    def unreadable_reason(self) -> str | None:
        """Why the generation can no longer be read, such as an index that was deleted; None if it can be read."""
        try:
            next(self.index.store.rows.metadata(self.index.generation.factors_version, ["example_id"]), None)
        except LorifError as error:
            return str(error)
        return None


@dataclass(frozen=True, slots=True)
class OpenFailure:
    """Why the newest generation cannot be opened: its number, if known, and one sentence."""

    generation: int | None
    message: str


class LiveIndex:
    """Holds the generation that answers, and replaces it when a newer one is published.

    Args:
        uri: the index.
        overrides: `storage.*` and `model.*` as on the command line.
        model: current location of the checkpoint, if it has moved.
        memory_gb: GiB for codes and for the data that queries are folded with; a generation gets half of it, so
            that the next one fits beside it.
        two_stage: search in two stages, and hold the data of the first stage in memory instead of the codes.

    Raises:
        UserError: the index, a generation or its checkpoint does not exist; or two-stage search is not possible
            for the index or within the memory.
    """

    def __init__(
        self, uri: str, overrides: Sequence[str], model: str | None, memory_gb: float, *, two_stage: bool = False
    ) -> None:
        self._uri, self._overrides, self._model = uri, overrides, model
        self.two_stage = two_stage
        self.name = uri.rstrip("/").rpartition("/")[2] or uri
        self.memory_bytes = int(memory_gb * 2**30)
        self.current = self._open(None)
        self.failure: OpenFailure | None = None
        self._retry_at = 0.0
        self._pinned: OpenGeneration | None = None

    def at(self, number: int | None) -> OpenGeneration:
        """The generation of a number, or the current one; the one that was asked for last stays open.

        Another generation than the current one is read from storage, and only if its checkpoints are in memory.

        Raises:
            ApiError: it does not exist any more, or it needs another checkpoint.
        """
        current, pinned = self.current, self._pinned
        if number in (None, current.index.generation.generation):
            return current
        store = current.index.store
        found = {generation.generation: generation for generation in store.generations()}
        if number not in found:
            numbers = ", ".join(map(str, sorted(found)))
            raise ApiError(
                410, "generation_gone", f"the index has no generation {number} any more; it has {numbers}"
            )
        if pinned is not None and pinned.index.generation == found[number]:
            return pinned
        index = Index(store, found[number])
        for part in index.parts:
            for earlier in current.index.parts:
                part.reuse_encoders(earlier)
        checkpoints = [part.known_checkpoint for part in index.own_checkpoint_parts]
        newest = checkpoints[-1]
        if newest is None or None in checkpoints:
            raise ApiError(
                409, "other_checkpoint", f"generation {number} needs a checkpoint that this server does not have "
                f"in memory; ask generation {current.index.generation.generation}",
            )  # fmt: skip
        columns = store.rows.descriptive_columns(index.generation.factors_version)
        self._pinned = OpenGeneration(index, newest, tuple(columns), 0, two_stage=False)
        return self._pinned

    def refresh(self) -> None:
        """Replace the current generation if a newer one exists; blocks while the newer one is opened."""
        newest: int | None = None
        try:
            newest = self.current.index.store.latest().generation
            if newest == self.current.index.generation.generation:
                self.failure = None
                return
            if self.failure and self.failure.generation == newest and time.monotonic() < self._retry_at:
                return
            self.current = self._open(self.current)
            self.failure = self._pinned = None  # a pinned generation would keep the model of a former checkpoint
            log.info("generation %d now answers", self.current.index.generation.generation)
        except Exception as error:  # noqa: BLE001 - the current generation continues to answer
            message = str(error) if isinstance(error, LorifError) else f"{type(error).__name__}: {one_line(error)}"
            if self.failure is None or self.failure.generation != newest:
                log.warning(
                    "the newest generation cannot be opened, the current one continues to answer: %s", message
                )
            self.failure = OpenFailure(newest, message)
            self._retry_at = time.monotonic() + _RETRY_SECONDS

    def _open(self, former: OpenGeneration | None) -> OpenGeneration:
        index, checkpoint = open_for_questions(self._uri, self._overrides, self._model)
        for part in index.parts:
            for earlier in () if former is None else former.index.parts:
                part.reuse_encoders(earlier)
        index.encoders(checkpoint)
        resident_bytes = 0
        for part in reversed(index.parts):  # the newest rows first
            resident_bytes += part.keep_resident(self.memory_bytes // 2 - resident_bytes, two_stage=self.two_stage)
        schema = index.store.rows.descriptive_schema(index.generation.factors_version)
        numbers = frozenset(field.name for field in schema if _is_number(field.type))
        return OpenGeneration(index, checkpoint, tuple(schema.names), resident_bytes, self.two_stage, numbers)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
