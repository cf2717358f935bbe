"""Tail-patch (Chang et al., arXiv 2410.17413): the effect of one training step on proponents on their query.

The attributed checkpoint takes one optimiser step on the mean loss per scored token of the k proponents together.
The measure is the increase of the query's log-probability; larger is better. The optimiser has no state yet: a
step of AdamW is about the learning rate times the sign of the gradient, a step of SGD is the learning rate times
the gradient. With SGD the plain dot product of full gradients is the best ranking, to first order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from lorif_core.corpus.batches import token_budget_batches
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import LorifError
from lorif_core.evaluation.training_recipe import batch_loss, token_summed_losses

_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True, slots=True)
class PatchStep:
    """The training step. It has no weight decay, which would change the query's loss for any proponents."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 1e-3


class Patcher:
    """Takes single steps from one checkpoint; its weights are restored bit for bit after each step.

    Args:
        model: a transformers model in float32 on the CPU, in evaluation mode (no dropout).
        step: the step to take.
    """

    def __init__(self, model: Any, step: PatchStep) -> None:
        self._model, self._step = model.requires_grad_(True), step
        self._parameters = list(model.parameters())
        self._weights = [parameter.detach().clone() for parameter in self._parameters]

    def gain(self, proponents: Sequence[Example], query: Example) -> float:
        """Increase of the query's token-summed log-probability in nats after one step on the proponents.

        Raises:
            LorifError: the query's loss is not finite after the step.
        """
        before = token_summed_losses(self._model, [query])
        self._take_step(proponents)
        try:
            gain = float((before - token_summed_losses(self._model, [query]))[0])
        finally:
            self._restore()
        if not np.isfinite(gain):
            raise LorifError(
                f"the loss of query {query.example_id!r} is not finite after the step; lower "
                f"tail_patch.learning_rate"
            )
        return gain

    def _take_step(self, examples: Sequence[Example]) -> None:
        make = torch.optim.SGD if self._step.optimizer == "sgd" else torch.optim.AdamW
        optimizer = make(self._parameters, lr=self._step.learning_rate, weight_decay=0.0)
        tokens = sum(example.scored for example in examples)
        lengths = [len(example.input_ids) for example in examples]
        for indices in token_budget_batches(lengths, max(_TOKENS_PER_BATCH, *lengths)):
            (batch_loss(self._model, examples, indices, "float32")[0].sum() / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def _restore(self) -> None:
        for parameter, weight in zip(self._parameters, self._weights, strict=True):
            parameter.copy_(weight)


def top_columns(scores_QN: np.ndarray, k: int) -> np.ndarray:
    """(Q, k) columns of the highest scores of each row, highest first; ties in the order of the columns."""
    return np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
