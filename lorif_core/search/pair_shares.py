"""Which tokens of an answer a span of a training text speaks to.

A score is linear in the gradient of each token of the query, and in the parts of the training text's positions
(`gradients.token_parts`). So the score of a token of the query and a span of the text is that of the token against
the sum of the parts of the span.

Shapes: T tokens of the query, D = d1 d2 of a layer.
"""

from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.errors import UserError
from lorif_core.gradients.token_parts import TokenParts
from lorif_core.search.contributions import RequestedRows, by_token, requested_rows
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.queries import QueryInput, parse_queries
from lorif_core.search.query_encoder import ModelInput
from lorif_core.search.stored_examples import StoredExample
from lorif_core.search.training_shares import restore_examples


@dataclass(frozen=True, slots=True)
class PairShares:
    """The query's T tokens as text, and what a span of a training text adds to the score of each, (T,) float32."""

    tokens: tuple[str, ...]
    shares: np.ndarray


def pair_shares(
    index: GenerationReader, query: QueryInput, example_id: str, start: int, end: int, model: ModelInput = None
) -> PairShares:
    """What a span of a training text adds to the score of each token of a query.

    Over all spans of the text they add up to `token_scores`; over all tokens to the shares of the span's tokens in
    `training_shares`.

    Args:
        index: the generation to read.
        query: a single query, or a contrast.
        example_id: the training example.
        start: first character of the span in its stored text.
        end: the character after the last.
        model: as in `Index.scores`.

    Raises:
        UserError: as in `token_scores`; or the example cannot be run again, or no token of it overlaps the span.
    """
    (parsed,) = parse_queries([query])
    texts, folded_tokens = by_token(index, parsed, model)
    (rows,) = requested_rows(index, [example_id])
    restored, reason = restore_examples(index, [rows], [example_id], model)
    if reason is not None:
        raise UserError(f"{example_id!r} cannot be run again: {reason}")
    span = _span_code(index, rows, restored[rows.part][example_id], start, end, model)
    shares_T = np.zeros(len(texts))
    for tokens, folded in folded_tokens:
        for weight_BD, part_D in zip(folded[rows.part].weights, span, strict=True):
            shares_T[tokens] += (weight_BD.double() @ part_D).numpy()
    return PairShares(tuple(texts), shares_T.astype(np.float32))


def _span_code(
    index: GenerationReader, rows: RequestedRows, stored: StoredExample, start: int, end: int, model: ModelInput
) -> list[torch.Tensor]:
    """The part of a span in the code of an example, (D,) float64 of each layer."""
    inside_T = np.array([first < end and start < stop for first, stop in stored.spans])
    if not inside_T.any():
        raise UserError(
            f"no token of {stored.example.example_id!r} that was indexed has a character from {start} to {end}"
        )
    predicting_T = np.append(inside_T[1:], inside_T[-1])  # the position before a token has its share
    layout = index.parts[rows.part].layout
    layers = [torch.zeros(slot.layer.dim, dtype=torch.float64) for slot in layout.slots]

    def take(_: object, number: int, parts: TokenParts) -> None:
        layer = layout.slots[number].layer
        code_Bdd = layout.decode(rows.block.codes, rows.block.scales, number).view(-1, layer.d1, layer.d2)
        layers[number] = parts.sum_over(torch.from_numpy(predicting_T)[None], code_Bdd)[0].flatten().cpu()

    index.run_encoder(rows.part, model).token_parts([stored.example], take, restart=lambda: None)
    return layers
