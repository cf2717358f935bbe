"""Capture of projected activations and output gradients of the tracked layers, and what becomes of them.

A forward hook projects a layer's input to A = X P_in, a tensor hook on its output projects the gradient to
E = D P_out; a sink takes the pair as soon as it is whole. Weights need no gradient: the graph begins at the first
tracked layer's output, so only activation gradients are computed.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout, encode
from lorif_core.gradients.projection import ProjectionSet, Side
from lorif_core.spec import LayerSpec

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


Take = Callable[[int, torch.Tensor, torch.Tensor], None]


class GradientCapture:
    """Context manager: while open, every backward pass of the model hands each layer's pair (A, E) to `take`.

    Args:
        layers: the tracked layers, by name, for messages.
        modules: their modules, in the same order; inputs must be (B, T, I) or (B T, I).
        projections: P_in and P_out per layer.
        take: is called with a layer's number, A (B, T, d1) and E (B, T, d2), once per layer and backward pass; T
            is that of the batch as often as the model uses the module.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        modules: Sequence[torch.nn.Module],
        projections: ProjectionSet,
        take: Take,
    ) -> None:
        self._layers, self._modules, self._take = layers, modules, take
        self._projections = projections.layers
        self._handles: list[Any] = []
        self._shape = (0, 0)
        self._pairs: defaultdict[int, _Pairs] = defaultdict(_Pairs)
        self._shared_input: tuple[torch.Tensor, str, torch.Tensor] | None = None

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

    def start(self, batch: int, tokens: int) -> None:
        """Prepare for one forward and backward of a (batch, tokens) input."""
        self._forget()
        self._shape = (batch, tokens)

    def finish(self) -> None:
        """Hand over what is left after the backward pass: modules of which some use had no part in the loss."""
        for index, pairs in self._pairs.items():
            if 0 < len(pairs.E) < pairs.uses:
                self._take(index, *pairs.joined())
        self._forget()

    def _forget(self) -> None:
        self._pairs.clear()
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
                self._take(index, *pairs.joined())
                pairs.A, pairs.E = [], []

        return hook

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
            f"the layer {self._layers[index].name} sees tensors of shape {tuple(x.shape)}, not "
            f"(batch, tokens, features); leave it out with model.layers"
        )


@dataclass(slots=True)
class _Waiting:
    """Layers of one shape that wait to be encoded together."""

    layers: list[int] = field(default_factory=list)
    A: list[torch.Tensor] = field(default_factory=list)
    E: list[torch.Tensor] = field(default_factory=list)
    bytes: int = 0


class CodeSink:
    """Takes pairs and keeps their codes, many layers encoded at once.

    Args:
        layout: row layout of the codes.
        unbiased: scale factors so that <G, decoded> = |G|^2 (`factors.encode`).
    """

    def __init__(self, layout: CodeLayout, *, unbiased: bool) -> None:
        self._layout, self._unbiased = layout, unbiased
        self._batch = 0
        self._waiting: defaultdict[tuple[torch.device, int, int, int], _Waiting] = defaultdict(_Waiting)
        self._codes = torch.empty(0)
        self._scales = torch.empty(0)

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        """Prepare for one batch of so many examples; codes will be of `dtype`."""
        self._batch = batch
        self._waiting.clear()
        self._codes = torch.zeros(batch, self._layout.width, device=device, dtype=dtype)
        self._scales = torch.zeros(batch, self._layout.scales, device=device, dtype=dtype)

    def take(self, index: int, A_BTd: torch.Tensor, E_BTd: torch.Tensor) -> None:
        """A pair of one layer, as `GradientCapture` hands it over."""
        waiting = self._waiting[E_BTd.device, A_BTd.shape[1], A_BTd.shape[2], E_BTd.shape[2]]
        waiting.layers.append(index)
        waiting.A.append(A_BTd)
        waiting.E.append(E_BTd)
        waiting.bytes += (A_BTd.numel() + E_BTd.numel()) * E_BTd.element_size()
        if waiting.bytes >= _WAITING_BYTES:
            self._encode(waiting)

    def codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels (B, W) and scales (B, S) of the batch; a layer that saw no gradient has zeros."""
        for waiting in self._waiting.values():
            self._encode(waiting)
        codes, scales = self._codes, self._scales
        self._codes, self._scales = torch.empty(0), torch.empty(0)
        return codes, scales

    def _encode(self, waiting: _Waiting) -> None:
        if not waiting.layers:
            return
        A, E = _cat(waiting.A, dim=0), _cat(waiting.E, dim=0)
        encoded = encode(A, E, self._layout.code, unbiased=self._unbiased)
        for index, codes, scales in zip(
            waiting.layers, encoded.codes.split(self._batch), encoded.scales.split(self._batch), strict=True
        ):
            slot = self._layout.slots[index]
            self._codes[:, slot.start : slot.stop] = codes
            self._scales[:, slot.scales] = scales
        waiting.layers, waiting.A, waiting.E, waiting.bytes = [], [], [], 0


def _cat(tensors: list[torch.Tensor], dim: int) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=dim)
