"""The JSON form of an answer."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flows.serve.live_index import SearchKind
from lorif_core.model.layer_choice import LayerKind
from lorif_core.search.distribution import ScoreSource


class _OfObject(BaseModel):
    """A model that is made of an object with the same attributes."""

    model_config = ConfigDict(from_attributes=True)


class TrainingToken(_OfObject):
    """A token of a training text, and its share of the score."""

    start: int = Field(description="Its first character in the text, counted from 0 in Unicode code points.")
    end: int = Field(
        description="The character after its last; equal to `start` for a token without characters, such as an "
        "end of sequence."
    )
    share: float = Field(description="What it adds to the score; the shares of all tokens add up to the score.")


class LayerShare(_OfObject):
    """A layer of the model, and its share of a score."""

    layer: str = Field(description="The name of the layer.")
    block: int | None = Field(description="The number of its block, from 0; null for a layer outside of blocks.")
    kind: LayerKind = Field(
        description="`attention`, `mlp`, `expert` (of a mixture of experts), or `other` if the name shows none."
    )
    share: float = Field(description="What it adds to the score; the shares of all layers add up to the score.")


class AnswerToken(_OfObject):
    """A token of the query, and how likely the model finds it."""

    text: str = Field(description="The text of the token; the texts of all tokens are the query's text.")
    loss: float | None = Field(description="Its loss in nats; null if it is not scored.")


class Likelihood(_OfObject):
    """How likely the model finds the scored tokens of the query."""

    nats_per_token: float = Field(description="The mean loss of the scored tokens, in nats.")
    own_nats_per_token: float = Field(
        description="The mean loss that the model's first choice would have had in each place, in nats."
    )
    words: str = Field(description="What the difference between the two means, in plain words.")


class Distribution(_OfObject):
    """A histogram of the scores of all searched rows."""

    edges: list[float] = Field(description="The edges of the bins, ascending, one more than `counts`.")
    counts: list[int] = Field(description="The number of rows in each bin; the lower edge belongs to a bin.")
    scores: ScoreSource = Field(
        description="`exact`; `prefilter` if rows that cannot be among the shown ones are counted by approximate "
        "scores; or `sketch` if only the candidates of a two-stage search are counted by exact scores."
    )


class Turn(BaseModel):
    """A turn of a conversation: its role, and what is said as characters `start` to `end` of the text."""

    role: str = Field(description="Who speaks; `template` for a longer text that only the chat template has.")
    start: int = Field(description="The first character, from 0.")
    end: int = Field(description="The character after the last.")


class Hit(BaseModel):
    """A training example and its score."""

    rank: int = Field(description="The rank among proponents or opponents, from 1.")
    example_id: str = Field(description="The id of the training example.")
    score: float = Field(description="The influence of the training example on the query.")
    text: str | None = Field(description="The text of the training example; null if the index stores no texts.")
    turns: list[Turn] | None = Field(None, description="The turns in the text; null unless it is a conversation.")
    uri: str = Field(description="The corpus file that the training example comes from.")
    row: int = Field(description="The number of the record in that file, from 0.")
    checkpoint: str = Field(description="The fingerprint of the checkpoint that its gradient was computed at.")
    percentile: float | None = Field(
        None, description="Percent of the searched rows that rank below it; null if they were not counted."
    )
    relative: float = Field(0.0, description="Its score divided by the largest absolute score of the answer.")
    tokens: list[float] | None = Field(
        None, description="What each token of the query adds to the score; null without an explanation."
    )
    training_tokens: list[TrainingToken] | None = Field(
        None,
        description="What each token of the training text adds to the score, ascending; null without an "
        "explanation.",
    )
    layers: list[LayerShare] | None = Field(
        None, description="What each layer adds to the score; null without an explanation."
    )


class Answer(BaseModel):
    """The training examples with the highest scores (proponents) and with the lowest scores (opponents)."""

    generation: int = Field(description="The number of the generation that answered.")
    checkpoint: str = Field(description="The fingerprint of the newest checkpoint of that generation.")
    loss: float = Field(description="The loss of the query, summed over its scored tokens, in nats.")
    relative: bool = Field(
        description="Whether scores are shares of the query's influence on itself, because rows belong to several "
        "checkpoints."
    )
    search: SearchKind = Field(
        description="`full` scans every row; `two-stage` may miss rows, but the scores that it returns are exact."
    )
    proponents: list[Hit] = Field(description="The examples with the highest scores, highest first.")
    opponents: list[Hit] = Field(description="The examples with the lowest scores, lowest first.")
    tokens: list[str] | None = Field(
        None, description="The tokens of the query; null if no explanation was requested or possible."
    )
    unexplained: str | None = Field(
        None, description="Why the query's tokens have no explanation although it was requested; null otherwise."
    )
    unshaded: str | None = Field(
        None, description="Why some explained examples have no `training_tokens`; null otherwise."
    )
    layers: list[LayerShare] | None = Field(
        None,
        description="What each layer adds to the sum of the scores of the explained proponents; null without an "
        "explanation.",
    )
    completion: str | None = Field(
        None, description="What the model added to the text, if the question asked it to; null otherwise."
    )
    answer_tokens: list[AnswerToken] | None = Field(
        None, description="The tokens of the query with their losses; null for a group or a contrast."
    )
    likelihood: Likelihood | None = Field(
        None, description="How likely the model finds the query; null for a group or a contrast."
    )
    distribution: Distribution | None = Field(None, description="The distribution of all scores.")
    totals: list[dict[str, Any]] | None = Field(
        None, description="Sums of scores by the requested column, one row per value, largest total first."
    )
    seconds: float = Field(0.0, description="The time from the arrival of the question to its answer, in seconds.")
