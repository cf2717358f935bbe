"""Capture of projected activations and output gradients of the tracked layers, one code a layer and example.

A forward hook projects a layer's input to A = X P_in, a tensor hook on its output projects the gradient to
E = D P_out; the code of G = A^T E is taken as soon as enough layers wait. Weights need no gradient: the graph
begins at the first tracked layer's output, so only activation gradients are computed.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

from lorif_core.errors import UserError
from lorif_core.factors import CodeLayout, encode
from lorif_core.projection import ProjectionSet, Side

# Enough for the power iteration to run on many layers at once, little next to a model that needs it.
_WAITING_BYTES = 256 * 2**20


@dataclass(slots=True)
class _Pairs:
    """Projected pairs of one layer: one pair each time the model uses the module."""

    A: list[torch.Tensor] = field(default_factory=list)
    E: list[torch.Tensor] = field(default_factory=list)
    uses: int = 0

    def joined(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A^T E + A'^T E' is one product over the tokens of both uses."""
        return _cat(self.A, dim=1), _cat(self.E, dim=1)


@dataclass(slots=True)
class _Waiting:
    """Layers of one shape that wait to be encoded together."""

    layers: list[int] = field(default_factory=list)
    A: list[torch.Tensor] = field(default_factory=list)
    E: list[torch.Tensor] = field(default_factory=list)
    bytes: int = 0


class GradientCapture:
    """Context manager: while open, a forward and a backward pass of the model leave codes in `take()`.

    Args:
        modules: the tracked modules, in layer order; their inputs must be (B, T, I) or (B T, I).
        layout: row layout of the codes.
        projections: P_in and P_out per layer.
    """

    def __init__(self, modules: Sequence[torch.nn.Module], layout: CodeLayout, projections: ProjectionSet) -> None:
        self._modules = modules
        self._layout = layout
        self._projections = projections.layers
        self._handles: list[Any] = []
        self._shape = (0, 0)
        self._pairs: defaultdict[int, _Pairs] = defaultdict(_Pairs)
        self._waiting: defaultdict[tuple[torch.device, int, int, int], _Waiting] = defaultdict(_Waiting)
        self._shared_input: tuple[torch.Tensor, str, torch.Tensor] | None = None
        self._codes = torch.empty(0)
        self._scales = torch.empty(0)

    def __enter__(self) -> "GradientCapture":
        for index, module in enumerate(self._modules):
            self._handles.append(module.register_forward_hook(self._forward_hook(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forget()

    def start(self, batch: int, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        """Prepare for one forward and backward of a (batch, tokens) input; codes will be of `dtype`."""
        self._forget()
        self._shape = (batch, tokens)
        self._codes = torch.zeros(batch, self._layout.width, device=device, dtype=dtype)
        self._scales = torch.zeros(batch, len(self._layout.slots), device=device, dtype=dtype)

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (B, W) and scales (B, L) of the batch; a layer that saw no gradient has zeros."""
        for index, pairs in self._pairs.items():
            if 0 < len(pairs.E) < pairs.uses:  # some use of the module had no part in the loss
                self._enqueue(index, pairs)
        for waiting in self._waiting.values():
            self._encode(waiting)
        codes, scales = self._codes, self._scales
        self._forget()
        return codes, scales

    def _forget(self) -> None:
        self._pairs.clear()
        self._waiting.clear()
        self._shared_input = None

    def _forward_hook(self, index: int) -> Any:
        inner = self._projections[index].inner

        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
            A_BTd = self._project_input(index, inner, inputs[0])
            if not output.requires_grad:
                # the graph begins here; cloned, so that the model may still write to it in place
                output = output.detach().requires_grad_(True).clone()
            self._pairs[index].uses += 1
            output.register_hook(self._gradient_hook(index, A_BTd))
            return output

        return hook

    def _gradient_hook(self, index: int, A_BTd: torch.Tensor) -> Any:
        outer = self._projections[index].outer

        def hook(grad: torch.Tensor) -> None:
            pairs = self._pairs[index]
            pairs.A.append(A_BTd)
            pairs.E.append(outer(self._as_batch(index, grad)))
            if len(pairs.E) == pairs.uses:
                self._enqueue(index, pairs)

        return hook

    def _enqueue(self, index: int, pairs: _Pairs) -> None:
        A_BTd, E_BTd = pairs.joined()
        waiting = self._waiting[E_BTd.device, A_BTd.shape[1], A_BTd.shape[2], E_BTd.shape[2]]
        waiting.layers.append(index)
        waiting.A.append(A_BTd)
        waiting.E.append(E_BTd)
        waiting.bytes += (A_BTd.numel() + E_BTd.numel()) * E_BTd.element_size()
        pairs.A, pairs.E = [], []
        if waiting.bytes >= _WAITING_BYTES:
            self._encode(waiting)

    def _encode(self, waiting: _Waiting) -> None:
        if not waiting.layers:
            return
        encoded = encode(_cat(waiting.A, dim=0), _cat(waiting.E, dim=0), self._layout.code)
        batch = self._shape[0]
        for index, codes, scales in zip(
            waiting.layers, encoded.codes.split(batch), encoded.scales.split(batch), strict=True
        ):
            slot = self._layout.slots[index]
            self._codes[:, slot.start : slot.stop] = codes
            self._scales[:, index] = scales
        waiting.layers, waiting.A, waiting.E, waiting.bytes = [], [], [], 0

    def _project_input(self, index: int, inner: Side, x: torch.Tensor) -> torch.Tensor:
        """A = X P_in; layers that read the very same tensor through the same matrix share the product."""
        shared = self._shared_input
        if shared is not None and shared[0] is x and shared[1] == inner.key:
            return shared[2]
        A_BTd = inner(self._as_batch(index, x.detach()))
        self._shared_input = (x, inner.key, A_BTd)
        return A_BTd

    def _as_batch(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """(B, T, d), or a refusal: a layer whose rows cannot be told apart by example cannot be tracked."""
        batch, tokens = self._shape
        if x.dim() == 3 and x.shape[:2] == (batch, tokens):
            return x
        if x.dim() == 2 and x.shape[0] == batch * tokens:
            return x.view(batch, tokens, -1)
        raise UserError(
            f"the layer {self._layout.slots[index].layer.name} sees tensors of shape {tuple(x.shape)}, not "
            f"(batch, tokens, features); leave it out with model.layers"
        )


def _cat(tensors: list[torch.Tensor], dim: int) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=dim)
