"""The check before the first shard: captured gradients must equal autograd's, layer by layer.

Two examples of different lengths run as a padded batch through the capture. Each also runs alone,
through the model's own logits and plain autograd. This compares all that capture relies on: which modules have a
weight, how often they are called, the layout of their tensors, padding, and the loss of the head. It knows nothing
of how a model works, so it also finds what nobody has thought of. Experts that a router finds nearly as good as
others are the same in both runs (`repeated_choices.py`).

Shapes: T tokens, I and O features, d1 and d2 projected sizes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from lorif_core.corpus.batches import Batch, collate
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import UserError
from lorif_core.formatting import listed
from lorif_core.gradients.captured_model import CapturedModel
from lorif_core.gradients.repeated_choices import ChoiceRecorder, ChoiceRepeater
from lorif_core.model.experts import ExpertMatrix
from lorif_core.model.loading import LoadedModel
from lorif_core.model.loss import token_losses
from lorif_core.model.probe import ordinary_ids
from lorif_core.model.running import model_errors
from lorif_core.spec import exclusion

_LENGTHS = (7, 11)
_ATTEMPTS = 3  # rounding may change much, but a fault repeats itself
_LISTED = 5
_FLOAT32 = torch.finfo(torch.float32)
_NOISE = _FLOAT32.eps  # times the largest gradient: below it a gradient that should be zero is rounding
# of the 210 layers of SmolLM2-135M in float32 some differ by 0.0016, because rounding adds up over 30 blocks
_TOLERANCES = {torch.float64: 1e-4, torch.float32: 5e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
_LARGEST_TOLERANCE = max(_TOLERANCES.values())
_ROUNDINGS = 2  # rounding errors of a token's product, in units of the dtype's resolution


def check_capture(model: CapturedModel) -> None:
    """Compare captured with autograd's projected gradients of two short examples.

    It takes three forward and backward passes over a few tokens. One weight gradient at a time is in memory.

    Raises:
        UserError: a layer differs by more than the tolerance of the weights' dtype; the message names it.
    """
    loaded, layers = model.loaded, model.layers
    attempts = 1 if loaded.dtype == torch.float64 else _ATTEMPTS
    failures: dict[int, list[float]] = {}
    for attempt in range(attempts):
        with model_errors(
            f"{type(loaded.model).__name__} cannot run a forward and backward pass over a short example",
            "this model cannot be attributed",
        ):
            errors = _errors(model, _examples(loaded, attempt))
        for index, error in errors.items():
            failures.setdefault(index, []).append(error)
        if not failures:
            return
    wrong = {index: max(errors) for index, errors in failures.items() if 2 * len(errors) > attempts}
    if not wrong:
        return
    names = [layers[index].name for index in sorted(wrong)]
    advice = f"leave them out with model.exclude: {exclusion(names)}"
    if len(names) == len(layers):
        advice = "this model cannot be attributed"
    raise UserError(
        f"the gradients of {len(names)} of {len(layers)} layers cannot be captured: they differ from autograd "
        f"by up to {max(wrong.values()):.1%} in {listed(names, _LISTED)}; {advice}"
    )


def _examples(loaded: LoadedModel, seed: int) -> list[Example]:
    """Random examples without special tokens, which may stand for images or padding."""
    ordinary, rng = ordinary_ids(loaded.model.config, loaded.vocab_size), np.random.default_rng(seed)
    examples = []
    for length in _LENGTHS:
        ids = rng.choice(ordinary, length).astype(np.int32)
        examples.append(Example(f"self-check {length}", 0, ids, ids, None, ""))
    return examples


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Norms of the difference, of the gradient by autograd, and of what rounding may add to the difference."""

    difference: float
    size: float
    rounding: float

    def error(self, tolerance: float, noise: float) -> float:
        """Relative error, or 0 if it is within the tolerance; infinite if it is not finite."""
        if self.difference <= tolerance * self.size + self.rounding + noise:
            return 0.0
        return self.difference / self.size if self.size > 0 and math.isfinite(self.difference) else math.inf


def _errors(model: CapturedModel, examples: list[Example]) -> dict[int, float]:
    """The largest relative error over the examples, for the layers in which it is too large."""
    batch, dtype = collate(examples, range(len(examples))), model.loaded.dtype
    tolerance = _TOLERANCES.get(dtype, _LARGEST_TOLERANCE)
    with ChoiceRecorder(*batch.input_ids.shape) as recorder:
        captured = _captured(model, batch)
    comparisons: list[tuple[int, _Comparison]] = []
    seen = set(captured)
    for row, example in enumerate(examples):
        pairs = {index: (A_BTd[row], E_BTd[row]) for index, (A_BTd, E_BTd) in captured.items()}

        def compare(
            index: int, gradient: torch.Tensor, pairs: dict[int, tuple[torch.Tensor, torch.Tensor]] = pairs
        ) -> None:
            seen.add(index)
            expected = _project(model, index, gradient)
            comparisons.append((index, _compare(pairs.pop(index, None), expected, dtype)))

        with ChoiceRepeater(recorder.of_example(row, len(example.input_ids)), tolerance):
            _for_each_gradient(model, example, compare)
        for index, pair in pairs.items():  # captured, but without a gradient in autograd
            comparisons.append((index, _compare(pair, torch.zeros(()).double(), dtype)))
    noise = _NOISE * max((comparison.size for _, comparison in comparisons), default=0.0)
    # a layer that neither has seen would count as covered and only have zeros
    errors = {index: 1.0 for index in range(len(model.layers)) if index not in seen}
    for index, comparison in comparisons:
        error = comparison.error(tolerance, noise)
        if error:
            errors[index] = max(error, errors.get(index, 0.0))
    return errors


def _compare(
    pair: tuple[torch.Tensor, torch.Tensor] | None, expected: torch.Tensor, dtype: torch.dtype
) -> _Comparison:
    """Compare A^T E, or zero if nothing was captured, with the expected gradient."""
    size = float(expected.norm())
    if pair is None:
        return _Comparison(size, size, 0.0)
    A, E = pair
    resolution = max(torch.finfo(dtype).eps, _FLOAT32.eps)  # models in float64 compute some steps in float32
    rounding = _ROUNDINGS * resolution * float((A.norm(dim=1) * E.norm(dim=1)).sum())
    return _Comparison(float((A.T @ E - expected).norm()), size, rounding)


def _captured(model: CapturedModel, batch: Batch) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """The pair (A, E) of each captured layer, float64 on the CPU."""
    pairs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def take(index: int, A_BTd: torch.Tensor, E_BTd: torch.Tensor) -> None:
        pairs[index] = A_BTd.double().cpu(), E_BTd.double().cpu()

    model.run(batch, take)
    return pairs


def _for_each_gradient(model: CapturedModel, example: Example, use: Callable[[int, torch.Tensor], None]) -> None:
    """Run autograd on one unpadded example; pass each layer's weight gradient to `use`, then free it."""

    def accumulated(index: int, weight: torch.nn.Parameter) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        use(index, gradient)

    weights = [first.weight for first, *_ in model.modules]
    left = [weight.grad for weight in weights]  # of a training before, which autograd would add to
    tokens = torch.from_numpy(example.input_ids).long()[None].to(model.loaded.device)
    handles = []
    try:
        for index, weight in enumerate(weights):
            weight.grad = None
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(partial(accumulated, index)))
        with torch.enable_grad():
            logits = model.loaded.model(input_ids=tokens, use_cache=False).logits
            token_losses(logits, tokens.to(logits.device)).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
        for weight, gradient in zip(weights, left, strict=True):
            weight.requires_grad_(False)
            weight.grad = gradient


def _project(model: CapturedModel, index: int, gradient: torch.Tensor) -> torch.Tensor:
    """P_in^T G P_out, (d1, d2) float64 on the CPU, of the gradient of a layer's weight."""
    module, sides = model.modules[index][0], model.projections.layers[index]
    if isinstance(module, ExpertMatrix):
        return _project_experts(model, index, module, gradient)
    gradient_IO = gradient if isinstance(module, Conv1D) else gradient.T
    half = sides.inner.double()(gradient_IO.double().T)
    return sides.outer.double()(half.T).cpu()


def _project_experts(
    model: CapturedModel, index: int, matrix: ExpertMatrix, gradient: torch.Tensor
) -> torch.Tensor:
    """`_project` of fused experts, one after another, because all in float64 may not fit into memory."""
    sides, wide = model.projections.layers[index], model.expert_sides[index].double()
    narrow = (sides.outer if matrix.is_down else sides.inner).double()
    total = torch.zeros(())
    for number, gradient_IO in enumerate(matrix.gradients(gradient)):
        half = narrow(gradient_IO.double() if matrix.is_down else gradient_IO.double().T)
        total = total + wide(half.T, torch.full((half.shape[1],), number, device=half.device)).cpu()
    return total.T if matrix.is_down else total
