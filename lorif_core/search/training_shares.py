"""Where in the training texts a score comes from: the shares of their tokens, and of the layers.

Examples are restored and run once more, at the checkpoint that their rows are scored at. A score is linear in the
gradient of its example, which is a sum over the positions of the text (`gradients.token_parts`). The gradient at a
position comes mostly from the prediction of the token after it, so this token gets the share. The shares of an
example's tokens add up to its score, and so do those of the layers.

Shapes: T tokens of an example, R examples, L layers, B examples of a batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lorif_core.gradients.token_parts import TokenParts
from lorif_core.model.layer_choice import block_of, kind_of
from lorif_core.search.contributions import RequestedRows, requested_rows, scores_of_layers
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.query_encoder import ModelInput
from lorif_core.search.scoring import FoldedQueries
from lorif_core.search.shares import LayerShare, TrainingToken
from lorif_core.search.stored_examples import StoredExample, StoredExamples, placed
from lorif_core.spec import LayerSpec


@dataclass(frozen=True, slots=True)
class TrainingShares:
    """Shares by example id, of the tokens of its text and of the layers.

    `reason` says why some examples have no tokens; None if all have.
    """

    tokens: dict[str, tuple[TrainingToken, ...]] = field(default_factory=dict)
    layers: dict[str, tuple[LayerShare, ...]] = field(default_factory=dict)
    reason: str | None = None


def training_shares(
    index: GenerationReader, folded: Sequence[FoldedQueries], example_ids: Sequence[str], model: ModelInput = None
) -> TrainingShares:
    """The shares of the tokens and of the layers in the scores of some examples; one backward pass of each.

    Args:
        index: the generation that was searched.
        folded: one query, folded for every part.
        example_ids: ids of the examples, each once.
        model: as in `Index.scores`.

    Raises:
        UserError: an example does not exist.
    """
    requested = list(requested_rows(index, example_ids))
    scores_LR = scores_of_layers(index, folded, requested, len(example_ids))
    layers = {
        example_id: layer_shares(index.parts[-1].spec.layers, scores_LR[:, column].tolist())
        for column, example_id in enumerate(example_ids)
    }
    tokens: dict[str, tuple[TrainingToken, ...]] = {}
    restored, reason = restore_examples(index, requested, example_ids, model)
    for part, stored in restored.items():
        columns = [example_ids.index(example_id) for example_id in stored]
        weights = folded[part].weights
        shares = _token_shares(index, part, list(stored.values()), weights, scores_LR[:, columns], model)
        for (example_id, example), share_T in zip(stored.items(), shares, strict=True):
            pieces = placed(example.spans, share_T.tolist())
            tokens[example_id] = tuple(TrainingToken(*piece) for piece in pieces)
    return TrainingShares(tokens, layers, reason)


def layer_shares(layers: Sequence[LayerSpec], shares_L: Iterable[float]) -> tuple[LayerShare, ...]:
    """The shares of layers, with what their names say."""
    return tuple(
        LayerShare(layer.name, block_of(layer.name), kind_of(layer.name), share)
        for layer, share in zip(layers, shares_L, strict=True)
    )


def restore_examples(
    index: GenerationReader, requested: Sequence[RequestedRows], example_ids: Sequence[str], model: ModelInput
) -> tuple[dict[int, dict[str, StoredExample]], str | None]:
    """Examples by the number of their part and by id, and why some are missing (None if none is)."""
    details = index.store.rows.details(index.generation.factors_version, example_ids)
    restored: dict[int, dict[str, StoredExample]] = {}
    reasons = []
    for rows in requested:
        part = index.parts[rows.part]
        loaded = index.run_encoder(rows.part, model).loaded
        source = StoredExamples(part.spec.tokenisation, loaded.tokenizer, loaded.vocab_size, index.store.storage)
        for example_id in rows.block.example_ids:
            example = source.restore(details[example_id])
            if isinstance(example, str):
                reasons.append(example)
            else:
                restored.setdefault(rows.part, {})[example_id] = example
    return restored, min(reasons, default=None)


def predicting(shares_T: np.ndarray) -> np.ndarray:
    """Shares (T,) of positions as those of the tokens that are predicted there."""
    moved_T = np.roll(shares_T, 1)
    moved_T[0], moved_T[-1] = 0.0, moved_T[-1] + shares_T[-1]
    return moved_T


def _token_shares(
    index: GenerationReader,
    part: int,
    stored: Sequence[StoredExample],
    weights: Sequence[torch.Tensor],
    scores_LR: np.ndarray,
    model: ModelInput,
) -> list[np.ndarray]:
    """The shares (T,) float64 of the tokens of each example of a part."""
    examples = [item.example for item in stored]
    shares = [np.zeros(len(example.input_ids)) for example in examples]
    layers = index.parts[part].spec.layers

    def take(rows: Sequence[int], number: int, parts: TokenParts) -> None:
        weight = weights[number][0].view(layers[number].d1, layers[number].d2)
        shares_BT = parts.scores(weight, torch.from_numpy(scores_LR[number, rows])).numpy(force=True)
        for row, share_T in zip(rows, shares_BT, strict=True):
            shares[row] += share_T[: len(shares[row])]

    def restart() -> None:
        for share_T in shares:
            share_T.fill(0.0)

    index.run_encoder(part, model).token_parts(examples, take, restart)
    return [predicting(share_T) for share_T in shares]
