"""The state of the server and of its index."""

from typing import Literal

from pydantic import BaseModel, Field

from flows.serve.answering import GENERATION_SECONDS
from flows.serve.limits import BODY_BYTES
from flows.serve.live_index import LiveIndex, SearchKind
from flows.serve.question import MEMBERS_MAX, NEW_TOKENS_MAX, TEXT_MAX, TOKENS_MAX, TOP_K_MAX
from flows.serve.request_queue import MAX_WAITING
from lorif_core.tables.filters import MAX_CHARACTERS


class Health(BaseModel):
    """Whether the server answers from the newest generation."""

    status: Literal["ok", "stale"] = Field(
        description="`ok`, or `stale` if a newer generation cannot be opened (see /index)."
    )
    generation: int = Field(description="The number of the generation that answers.")


class Limits(BaseModel):
    """The limits of a question; the server refuses a question beyond any of them."""

    top_k: int = Field(default=TOP_K_MAX, description="The largest `top_k`.")
    text_characters: int = Field(default=TEXT_MAX, description="The largest number of characters of a text.")
    tokens: int = Field(default=TOKENS_MAX, description="The largest number of token ids of a query.")
    members: int = Field(default=MEMBERS_MAX, description="The largest number of queries of a group.")
    where_characters: int = Field(
        default=MAX_CHARACTERS, description="The largest number of characters of `where`."
    )
    body_bytes: int = Field(default=BODY_BYTES, description="The largest number of bytes of a request body.")
    new_tokens: int = Field(
        default=NEW_TOKENS_MAX, description="The largest number of tokens that the model adds to a text."
    )
    generation_seconds: int = Field(
        default=int(GENERATION_SECONDS), description="The number of seconds in which it does so at most."
    )
    waiting: int = Field(
        default=MAX_WAITING, description="The largest number of questions that wait or are being answered."
    )


class Memory(BaseModel):
    """The memory that the index uses, beside that of the model."""

    limit_bytes: int = Field(description="The limit for all generations that are open at one time.")
    resident_bytes: int = Field(
        description="The size of the codes in memory, or of some of their columns, and of the data that "
        "queries are folded with, such as the curvature."
    )
    resident_rows: int = Field(
        description="The number of rows whose codes are in memory; the codes of other rows are read from storage."
    )


class Stale(BaseModel):
    """A newer generation that cannot be opened."""

    generation: int | None = Field(description="The number of the newer generation; null if it is not known.")
    message: str = Field(description="One sentence that says why it cannot be opened.")


class IndexFacts(BaseModel):
    """The generation that answers, and the limits of the server."""

    name: str = Field(description="The name of the index: the last part of its path or URI.")
    generation: int = Field(description="The number of the generation that answers.")
    created_at: str = Field(description="When that generation was published, in ISO 8601.")
    rows: int = Field(description="The number of training examples in the generation.")
    tokens: int = Field(description="The number of tokens of these examples.")
    checkpoint: str = Field(description="The fingerprint of the newest checkpoint of the generation.")
    spec: str = Field(description="The hash of the index specification.")
    columns: list[str] = Field(description="The columns that `where` and `totals` can use.")
    search: SearchKind = Field(
        description="`full` scans every row; `two-stage` reads few candidates per question and may miss rows."
    )
    limits: Limits = Field(description="The limits of a question.")
    memory: Memory = Field(description="The memory that the index uses.")
    newer: Stale | None = Field(
        description="A newer generation that cannot be opened; null if the newest generation answers."
    )


def health_of(live_index: LiveIndex) -> Health:
    """The response of /health."""
    status: Literal["ok", "stale"] = "ok" if live_index.failure is None else "stale"
    return Health(status=status, generation=live_index.current.index.generation.generation)


def index_facts(live_index: LiveIndex) -> IndexFacts:
    """The response of /index."""
    opened, failure = live_index.current, live_index.failure
    generation = opened.index.generation
    return IndexFacts(
        name=live_index.name,
        generation=generation.generation,
        created_at=generation.created_at.isoformat(),
        rows=generation.rows,
        tokens=generation.tokens,
        checkpoint=generation.checkpoint,
        spec=generation.spec,
        columns=list(opened.columns),
        search=opened.search,
        limits=Limits(),
        memory=Memory(
            limit_bytes=live_index.memory_bytes,
            resident_bytes=opened.resident_bytes,
            resident_rows=opened.index.resident_rows,
        ),
        newer=None if failure is None else Stale(generation=failure.generation, message=failure.message),
    )
