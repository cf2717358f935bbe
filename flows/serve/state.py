"""What the server says of itself and of its index."""

from typing import Literal

from pydantic import BaseModel, Field

from flows.serve.limits import BODY_BYTES
from flows.serve.live_index import Newest, SearchKind
from flows.serve.question import MEMBERS_MAX, TEXT_MAX, TOKENS_MAX, TOP_K_MAX
from flows.serve.request_queue import PLACES
from flows.serve.where_guard import LONGEST


class Health(BaseModel):
    """Whether answers are given, and of which generation."""

    status: Literal["ok", "stale"] = Field(description="stale: a newer generation cannot be opened; see /index")
    generation: int


class Limits(BaseModel):
    """What is refused beyond."""

    top_k: int = TOP_K_MAX
    text_characters: int = TEXT_MAX
    tokens: int = TOKENS_MAX
    members: int = Field(default=MEMBERS_MAX, description="queries of a group")
    where_characters: int = LONGEST
    body_bytes: int = BODY_BYTES
    waiting: int = Field(default=PLACES, description="questions that are waiting or being answered")


class Memory(BaseModel):
    """What is kept in memory of the index, beside the model."""

    limit_bytes: int
    resident_bytes: int = Field(description="codes, or some columns of them, and what queries are folded with")
    resident_rows: int = Field(description="with their codes; those of others are read from storage for questions")


class Stale(BaseModel):
    """Why the newest generation does not answer."""

    generation: int | None
    message: str


class IndexFacts(BaseModel):
    """The generation that answers."""

    name: str
    generation: int
    created_at: str
    rows: int
    tokens: int
    checkpoint: str
    spec: str
    columns: list[str] = Field(description="for `where` and `totals`")
    search: SearchKind = Field(description="two-stage: few candidates of a question are read, rows may be missed")
    limits: Limits
    memory: Memory
    newer: Stale | None


def health_of(newest: Newest) -> Health:
    """See `Health`."""
    status: Literal["ok", "stale"] = "ok" if newest.trouble is None else "stale"
    return Health(status=status, generation=newest.current.index.generation.generation)


def index_facts(newest: Newest) -> IndexFacts:
    """See `IndexFacts`."""
    opened, trouble = newest.current, newest.trouble
    generation = opened.index.generation
    return IndexFacts(
        name=newest.name,
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
            limit_bytes=newest.memory_bytes,
            resident_bytes=opened.resident_bytes,
            resident_rows=opened.index.resident_rows,
        ),
        newer=None if trouble is None else Stale(generation=trouble.generation, message=trouble.message),
    )
