"""The JSON form of what a span of a training text adds to the tokens of an answer."""

from pydantic import BaseModel, Field

from flows.serve.live_index import OpenGeneration
from flows.serve.question import Pair


class PairAnswer(BaseModel):
    """What a span of a training text adds to the score of each token of the query."""

    generation: int = Field(description="The number of the generation that answered.")
    tokens: list[str] = Field(description="The tokens of the query.")
    shares: list[float] = Field(
        description="What the span adds to the score of each token; 0 for tokens that are not scored."
    )
    share: float = Field(description="The sum of the shares: what the span adds to the score of the example.")


def answer_pair(opened: OpenGeneration, pair: Pair) -> PairAnswer:
    """Compute a pair; see `lorif_core.search.pair_shares`. Raises UserError as it does."""
    shares = opened.index.pair_shares(
        pair.question.query(), pair.example_id, pair.start, pair.end, opened.checkpoint
    )
    return PairAnswer(
        generation=opened.index.generation.generation,
        tokens=list(shares.tokens),
        shares=shares.shares.tolist(),
        share=float(shares.shares.sum()),
    )
