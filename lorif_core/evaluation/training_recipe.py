"""Reproducible training of a checkpoint on given examples.

The ground truth of an evaluation trains a model on many subsets. Shapes: B rows, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from lorif_core.corpus.batches import collate, token_budget_batches
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import LorifError
from lorif_core.gradients.projection import counter_generator
from lorif_core.model.loss import token_losses
from lorif_core.spec import MASKED

_LOSS_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Recipe:
    """AdamW on the mean loss per scored token of a batch, with a linear warm-up and a linear decay to zero."""

    epochs: int = 3
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"


def subset(examples: int, share: float, number: int) -> np.ndarray:
    """Sorted indices (int64) of a random subset. They depend only on its number, its share and the corpus size."""
    order = counter_generator(0, f"subset/{number}/{examples}").permutation(examples)
    return np.sort(order[: round(share * examples)])


def train(model: Any, examples: Sequence[Example], recipe: Recipe, seed: int) -> None:
    """Train a transformers model in place; the seed determines the order of the examples.

    Raises:
        LorifError: the loss is not finite.
    """
    model.train().requires_grad_(True)
    steps = recipe.epochs * -(-len(examples) // recipe.batch)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps, recipe.warmup_share))
    for epoch in range(recipe.epochs):
        order = counter_generator(seed, f"epoch/{epoch}").permutation(len(examples))
        for start in range(0, len(order), recipe.batch):
            loss, tokens = batch_loss(model, examples, order[start : start + recipe.batch].tolist(), recipe.dtype)
            optimizer.zero_grad()
            (loss.sum() / max(tokens, 1)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=False)
            optimizer.step()
            schedule.step()
    if not bool(torch.isfinite(loss).all()):
        raise LorifError("training diverged: the loss is not finite; lower the learning rate of the recipe")
    model.eval().requires_grad_(False)


@torch.no_grad()
def token_summed_losses(model: Any, examples: Sequence[Example]) -> np.ndarray:
    """(N,) float64 token-summed losses, computed in float32."""
    losses = np.zeros(len(examples))
    lengths = [len(example.input_ids) for example in examples]
    for indices in token_budget_batches(lengths, max(_LOSS_TOKENS_PER_BATCH, *lengths)):
        losses[indices] = batch_loss(model, examples, indices, "float32")[0].double().numpy()
    return losses


def _rate(progress: float, warmup: float) -> float:
    if progress < warmup:
        return (progress + 0.01) / (warmup + 0.01)
    return max(0.0, (1 - progress) / (1 - warmup))


def batch_loss(
    model: Any, examples: Sequence[Example], indices: list[int], dtype: str
) -> tuple[torch.Tensor, int]:
    """Token-summed losses (B,) and the number of scored tokens."""
    batch = collate(examples, indices)
    ids, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = model(input_ids=ids, use_cache=False).logits
    return token_losses(logits, labels), int((labels[:, 1:] != MASKED).sum())
