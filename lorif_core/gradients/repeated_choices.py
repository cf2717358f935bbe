"""What `torch.topk` chooses in a run of a padded batch, chosen again when an example of it runs alone.

Routers choose experts by it. Rounding depends on the shape of the batch, so of two experts that are nearly as good
as each other one run may choose the first and the other run the second. Then the gradients of all layers differ.

Shapes: B examples, T tokens, N rows of an example, M numbers of a row, K chosen ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_TOPK = (torch.topk, torch.Tensor.topk)


class ChoiceRecorder(TorchFunctionMode):
    """Records all choices while it is open.

    Args:
        batch: number of examples of the run.
        tokens: tokens of each, with padding.
    """

    def __init__(self, batch: int, tokens: int) -> None:
        super().__init__()
        self._shape = batch, tokens
        self._indices: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and note what it chooses."""
        result = func(*args, **(kwargs or {}))
        if func in _TOPK:
            self._indices.append(result.indices)
        return result

    def of_example(self, number: int, tokens: int) -> list[torch.Tensor | None]:
        """For each call indices (N, K) of the first tokens of an example; None if tokens have no rows in it."""
        batch, padded = self._shape
        choices: list[torch.Tensor | None] = []
        for indices in self._indices:
            rows, chosen = indices.shape[:-1].numel(), indices.shape[-1]
            if rows % (batch * padded):
                choices.append(None)
            else:
                choices.append(indices.reshape(batch, padded, -1)[number, :tokens].reshape(-1, chosen))
        return choices


class ChoiceRepeater(TorchFunctionMode):
    """Chooses what was recorded in every row where rounding explains the difference to the row's own choice.

    Args:
        choices: those of the example, from a `ChoiceRecorder`.
        tolerance: what rounding may change in a number, relative to the largest one of the row.
    """

    def __init__(self, choices: Sequence[torch.Tensor | None], tolerance: float) -> None:
        super().__init__()
        self._choices, self._tolerance = iter(choices), tolerance

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and choose again what was recorded."""
        result = func(*args, **(kwargs or {}))
        if func not in _TOPK:
            return result
        recorded = next(self._choices, None)
        numbers = _of_last_dimension(*args, **(kwargs or {}))
        if recorded is None or numbers is None or recorded.numel() != result.indices.numel():
            return result
        recorded = recorded.view(result.indices.shape)
        is_as_good = _is_as_good(numbers.detach(), recorded, result.values.detach(), self._tolerance)
        indices = torch.where(is_as_good, recorded, result.indices)
        values, order = numbers.gather(-1, indices).sort(dim=-1, descending=True)
        return type(result)((values, indices.gather(-1, order)))


def _of_last_dimension(
    input: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True, **_: Any
) -> torch.Tensor | None:
    """The numbers (..., M) among which `torch.topk` chooses; None if it does not choose the largest of a row."""
    return input if dim in (-1, input.dim() - 1) and largest and input.is_floating_point() else None


def _is_as_good(
    numbers: torch.Tensor, recorded: torch.Tensor, best: torch.Tensor, tolerance: float
) -> torch.Tensor:
    """(..., 1) bool: whether the recorded numbers are as large as the best ones, up to the tolerance."""
    if int(recorded.max()) >= numbers.shape[-1]:
        return torch.zeros_like(best[..., :1], dtype=torch.bool)
    size = numbers.masked_fill(numbers.isinf(), 0.0).abs().amax(-1, keepdim=True)
    smallest = numbers.gather(-1, recorded).amin(-1, keepdim=True)
    return smallest >= best.amin(-1, keepdim=True) - tolerance * size
