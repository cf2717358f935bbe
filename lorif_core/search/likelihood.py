"""How likely the model finds an answer: the loss of each of its tokens, and a sentence in plain words."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnswerToken:
    """A token of a query as text, and its loss in nats; None if it is not scored."""

    text: str
    loss: float | None


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely the model finds the scored tokens of a query.

    Attributes:
        nats_per_token: their mean loss.
        own_nats_per_token: the mean loss that the model's first choice would have had at the same places.
        words: what the difference means, as a sentence without a full stop.
    """

    nats_per_token: float
    own_nats_per_token: float
    words: str
