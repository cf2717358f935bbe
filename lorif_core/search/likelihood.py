"""How likely the model finds an answer: the loss of each of its tokens, and a sentence in plain words.

The words compare an answer with what the model says by itself. Its greedy continuation consists of its first
choices, so the measure is the mean loss of the answer's tokens above that of the first choice in each place. It is
0 for the greedy continuation.

The limits come from SmolLM2-135M after 12 beginnings of WikiText-2 of 25 words. Mean of the measure, and from the
10th to the 90th percentile: 2.6 (1.8 to 3.2) nats a token for the model's own random samples, 2.3 (1.4 to 3.0) for
how the text goes on, 3.6 (2.7 to 4.6) for how another one goes on, and 5.3 (4.4 to 6.3) for the right words in a
random order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorif_core.search.queries import Query
from lorif_core.search.query_encoder import QueryEncoder
from lorif_core.search.token_texts import token_texts

_WORDS = (
    (0.1, "the model says this by itself"),
    (1.5, "the model could well say this by itself"),
    (3.2, "the model would usually say something else"),
    (4.5, "the model would rarely say this by itself"),
    (float("inf"), "the model would hardly say this by itself"),
)
"""Upper limits of the mean loss above the first choice, in nats, and what it means."""

_SAME = 1e-3  # in nats: the loss of the first choice itself, computed in another batch


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
        own_nats_per_token: the mean loss that the model's first choice would have had in the same places.
        words: what the difference means, as a sentence without a full stop.
    """

    nats_per_token: float
    own_nats_per_token: float
    words: str

    @property
    def is_own(self) -> bool:
        """Whether each token is the model's own first choice."""
        return self.nats_per_token - self.own_nats_per_token < _SAME


@dataclass(frozen=True, slots=True)
class SpokenAnswer:
    """The tokens of a query with their losses, and what they mean; empty for several queries in one."""

    tokens: tuple[AnswerToken, ...] = ()
    likelihood: Likelihood | None = None


NOT_SPOKEN = SpokenAnswer()


def spoken_answers(
    encoder: QueryEncoder, queries: Sequence[Query], by_token: Sequence[np.ndarray | None]
) -> list[SpokenAnswer]:
    """How likely the model finds queries, without another pass of it.

    Args:
        encoder: the encoder that computed the gradients of the queries.
        queries: the queries.
        by_token: the losses of their tokens (`QueryGradients.by_token`).
    """
    return [
        NOT_SPOKEN if losses_2T is None or query.group is not None else _spoken_answer(encoder, query, losses_2T)
        for query, losses_2T in zip(queries, by_token, strict=True)
    ]


def _spoken_answer(encoder: QueryEncoder, query: Query, losses_2T: np.ndarray) -> SpokenAnswer:
    losses_T, first_T = losses_2T
    texts = token_texts(encoder.example(query).input_ids.tolist(), encoder.tokenizer)
    tokens = (
        AnswerToken(text, None if np.isnan(loss) else float(loss))
        for text, loss in zip(texts, losses_T, strict=True)
    )
    nats, own = float(np.nanmean(losses_T)), float(np.nanmean(first_T))
    return SpokenAnswer(tuple(tokens), Likelihood(nats, own, words_of(nats - own)))


def words_of(above: float) -> str:
    """What a mean loss above that of the first choices means, in nats per token."""
    return next(words for limit, words in _WORDS if above <= limit)


def limit_of(above: float) -> float:
    """The limit up to which losses above those of the first choices have the same words; may be infinite."""
    return next(limit for limit, _ in _WORDS if above <= limit)
