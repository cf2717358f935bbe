"""What may be asked, as JSON: the fields of a queries file, and what `lorif query` has options for."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows.serve.where_guard import LONGEST, check_modest
from lorif_core.errors import UserError
from lorif_core.search.options import Normalisation
from lorif_core.search.queries import Query, as_query

TOP_K_MAX = 100
TEXT_MAX = 100_000
TOKENS_MAX = 100_000
MEMBERS_MAX = 32


Text = Annotated[str, Field(max_length=TEXT_MAX)]
Integers = Annotated[list[Annotated[int, Field(ge=-(2**31), lt=2**31)]], Field(max_length=TOKENS_MAX)]


class Single(BaseModel):
    """One query: a text; or a prompt and its completion, whose loss alone counts; or tokens."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text: Text | None = None
    prompt: Text | None = None
    completion: Text | None = None
    tokens: Integers | None = None
    labels: Integers | None = Field(None, description="with tokens: targets, -100 where not scored")

    @model_validator(mode="after")
    def _is_one_query(self) -> "Single":
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion go together")
        if self.labels is not None and self.tokens is None:
            raise ValueError("labels go with tokens")
        given = [name for name in self.kinds() if getattr(self, name) is not None]
        if len(given) != 1:
            told = f"it has {' and '.join(given)}" if given else "it has none of them"
            raise ValueError(f"give one of {', '.join(self.kinds())}; {told}")
        return self

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """Fields of which there is one."""
        return ("text", "prompt", "tokens")


Member = Text | Single


class Question(Single):
    """A query, or several in one, and what is to be found of it."""

    group: Annotated[list[Member], Field(min_length=1, max_length=MEMBERS_MAX)] | None = Field(
        None, description="the mean of several queries"
    )
    contrast: Annotated[list[Member], Field(min_length=2, max_length=2)] | None = Field(
        None, description="the first query minus the second"
    )
    top_k: int = Field(10, ge=1, le=TOP_K_MAX, description="proponents and opponents")
    where: Annotated[str, Field(min_length=1, max_length=LONGEST)] | None = Field(
        None, description="SQL condition on the columns that /index lists"
    )
    normalise: Normalisation = "none"
    explain: bool = Field(False, description="what each token of the query adds to the scores")
    totals: Annotated[str, Field(max_length=200)] | None = Field(None, description="sums of scores by this column")

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """Fields of which there is one."""
        return (*super().kinds(), "group", "contrast")

    @property
    def is_long(self) -> bool:
        """Whether it takes work that it shares with no other question."""
        return self.explain or self.totals is not None

    def query(self) -> Query:
        """As the library takes it. Raises UserError."""
        if self.explain and self.normalise != "none":
            raise UserError("explain shows what plain scores consist of; leave normalise away")
        if self.where is not None:
            check_modest(self.where)
        fields = ("text", "prompt", "completion", "tokens", "labels", "group", "contrast")
        given: dict[str, Any] = self.model_dump(include=set(fields), exclude_none=True)
        return as_query({"id": "question", **given}, 0)
