"""One forward pass of a training and its backward pass, and what is captured in it.

Shapes: S examples, n rows of an example, d2 projected size.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import torch

from lorif_core.recording.loss_scale import HeadWatch, LogProbs, LossScale
from lorif_core.recording.training_batch import TrainingBatch


@dataclass(slots=True, eq=False)
class Pairs:
    """Inputs and projected gradients of the calls of one layer, by call; `calls` is their number."""

    inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    E: dict[int, torch.Tensor] = field(default_factory=dict)
    calls: int = 0


@dataclass(slots=True, eq=False)
class Pass:
    """One forward pass and its backward pass.

    Attributes:
        batch: the examples.
        head: the logits of this pass, or what stands for them.
        scale: what the loss was multiplied by, as soon as its gradient has passed the head.
        is_running: whether its backward pass has begun.
        is_done: whether its backward pass has ended, so that later gradients do not count.
        is_checked: whether the scale at the head was seen to be right.
        kept: layers whose calls outside of the backward pass had a gradient.
        pairs: what has been captured and not passed on, by layer.
    """

    batch: TrainingBatch
    head: HeadWatch | LogProbs | None = None
    scale: LossScale | None = None
    is_running: bool = False
    is_done: bool = False
    is_checked: bool = False
    kept: set[int] = field(default_factory=set)
    pairs: defaultdict[int, Pairs] = field(default_factory=lambda: defaultdict(Pairs))
