"""The body of a question: the fields of a queries file, and the options of `lorif query`."""

import json
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from flows.answer_options import NEW_TOKENS
from lorif_core.errors import UserError
from lorif_core.search.options import Normalisation
from lorif_core.search.queries import Query, as_query
from lorif_core.tables.filters import MAX_CHARACTERS

TOP_K_MAX = 100
TEXT_MAX = 100_000
TOKENS_MAX = 100_000
MEMBERS_MAX = 32
MESSAGES_MAX = 100
NEW_TOKENS_MAX = 512
ID_MAX = 10_000

_NORMALISE, _NORMALIZE = "normalise", "normalize"

Text = Annotated[str, Field(max_length=TEXT_MAX)]
GenerationNumber = Annotated[
    int | None,
    Field(
        ge=1,
        lt=2**63,
        description="The generation that must answer; null takes the newest. Another one is read from storage.",
    ),
]
Integers = Annotated[list[Annotated[int, Field(ge=-(2**31), lt=2**31)]], Field(max_length=TOKENS_MAX)]


Objects = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MESSAGES_MAX)]


class Span(BaseModel):
    """A part of a text, in Unicode code points."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    start: int = Field(ge=0, le=TEXT_MAX, description="Its first character, counted from 0.")
    end: int = Field(ge=1, le=TEXT_MAX, description="The character after its last.")

    @model_validator(mode="after")
    def _is_not_empty(self) -> "Span":
        if self.start >= self.end:
            raise ValueError("end must be greater than start")
        return self


class SingleQuery(BaseModel):
    """One query: a text, a prompt and its completion, messages, or tokens.

    Of a prompt with its completion only the completion is scored, and of messages what the assistant says.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text: Text | None = Field(None, description="A text; every token that the model predicts is scored.")
    prompt: Text | None = Field(None, description="The text before `completion`; its tokens are not scored.")
    completion: Text | None = Field(None, description="The text after `prompt`; only its tokens are scored.")
    messages: Objects | None = Field(
        None,
        description="A conversation: objects with `role` and `content`, rendered by the index's chat template.",
    )
    tools: Objects | None = Field(
        None, description="JSON schemas of the functions that the assistant of `messages` may call."
    )
    span: Span | None = Field(
        None, description="A part of `text` or of `completion`; only tokens that overlap it are scored."
    )
    tokens: Integers | None = Field(None, description="Token ids, in place of a text.")
    labels: Integers | None = Field(
        None, description="Target ids for `tokens`, of the same length; a token with -100 is not scored."
    )

    @model_validator(mode="after")
    def _is_one_query(self) -> "SingleQuery":
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion go together")
        if self.labels is not None and self.tokens is None:
            raise ValueError("labels go with tokens")
        if self.tools is not None and self.messages is None:
            raise ValueError("tools go with messages")
        if self.messages is not None and len(json.dumps([self.messages, self.tools])) > TEXT_MAX:
            raise ValueError(f"messages and tools have more than {TEXT_MAX:,} characters")
        if self.span is not None and self.text is None and self.completion is None:
            raise ValueError("a span goes with text or completion")
        present = [name for name in self.kinds() if getattr(self, name) is not None]
        if len(present) != 1:
            reason = f"the query has {' and '.join(present)}" if present else "the query has none of them"
            raise ValueError(f"give exactly one of {', '.join(self.kinds())}; {reason}")
        return self

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """Fields of which a query has exactly one."""
        return ("text", "prompt", "messages", "tokens")

    def query(self) -> Query:
        """The query for the library. Raises UserError if it is not valid."""
        return as_query({"id": "question", **self._query_fields()}, 0)

    def _query_fields(self, *more: str) -> dict[str, Any]:
        """The fields that a queries file has, without those that are null."""
        return self.model_dump(include={*SingleQuery.model_fields, *more}, exclude_none=True)


Member = Text | SingleQuery


def _document_alias(schema: JsonDict) -> None:
    """Add the second spelling to the JSON schema, which lists only the first of several aliases."""
    properties = schema["properties"]
    assert isinstance(properties, dict)
    normalise = properties[_NORMALISE]
    assert isinstance(normalise, dict)
    properties[_NORMALIZE] = {
        **normalise, "title": "Normalize",
        "description": "Another spelling of `normalise`; give only one of them.",
    }  # fmt: skip


class Generate(BaseModel):
    """Let the model continue the text, and attribute what it adds."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_new_tokens: int = Field(
        NEW_TOKENS, ge=1, le=NEW_TOKENS_MAX, description="The largest number of tokens that the model adds."
    )


class GenerationRequest(Generate):
    """A text for the model to continue."""

    prompt: Annotated[str, Field(min_length=1, max_length=TEXT_MAX, description="The text to continue.")]


class Pair(BaseModel):
    """A query, and a span of a training text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    question: SingleQuery = Field(description="The query.")
    example_id: Annotated[str, Field(max_length=ID_MAX)] = Field(description="The id of the training example.")
    start: int = Field(ge=0, description="The first character of the span in the text of the example, from 0.")
    end: int = Field(ge=1, description="The character after the last of the span.")
    generation: GenerationNumber = None


class Question(SingleQuery):
    """A query, a group of queries or a contrast of two, with the options of the search."""

    model_config = ConfigDict(json_schema_extra=_document_alias)

    group: Annotated[list[Member], Field(min_length=1, max_length=MEMBERS_MAX)] | None = Field(
        None, description="Several queries whose mean is attributed."
    )
    contrast: Annotated[list[Member], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Two queries; the first minus the second is attributed."
    )
    top_k: int = Field(
        10, ge=1, le=TOP_K_MAX, description="The number of proponents, and of opponents, in the answer."
    )
    where: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)] | None = Field(
        None, description="An SQL condition on the columns that /index lists; only rows that meet it are searched."
    )
    normalise: Normalisation = Field(
        "none",
        validation_alias=AliasChoices(_NORMALISE, _NORMALIZE),
        description=(
            "`none` gives plain scores, `cosine` divides them by the roots of the self-influences of query and "
            "example, and `self` by that of the example only."
        ),
    )
    explain: bool = Field(
        False,
        description="If true, the answer shows what each token of the query, each token of the training texts and "
        "each layer adds to the scores of the first ten examples of each side.",
    )
    generate: Generate | None = Field(
        None,
        description="If given, the model continues `text` by its most likely tokens; what it adds is attributed.",
    )
    generation: GenerationNumber = None
    totals: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="A column of the index; the answer sums the scores of all rows by its values."
    )

    format: Literal["json", "csv", "parquet", "report"] = Field(
        "json",
        description="`csv` and `parquet` give a table with a row for each example, `report` a page in one file.",
    )

    @model_validator(mode="after")
    def _can_be_generated(self) -> "Question":
        if self.generate is not None and (self.text is None or self.span is not None):
            raise ValueError("generate goes with text, and without a span")
        return self

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """Fields of which a question has exactly one."""
        return (*super().kinds(), "group", "contrast")

    @property
    def is_long(self) -> bool:
        """Whether the question needs work that it shares with no other question."""
        return self.explain or self.totals is not None

    def query(self) -> Query:
        """The query for the library. Raises UserError if it or its options are not valid."""
        if self.explain and self.normalise != "none":
            raise UserError("explain shows the parts of plain scores; leave out normalise")
        return as_query({"id": "question", **self._query_fields("group", "contrast")}, 0)
