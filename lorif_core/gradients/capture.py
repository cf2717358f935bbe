"""Capture of projected activations and output gradients of the tracked layers, and their encoding.

A forward hook projects a layer's input to A = X P_in, and a tensor hook on its output projects the gradient to
E = D P_out. A sink receives the pair as soon as it is complete. Weights need no gradient: the graph begins at the
first tracked layer's output, so only activation gradients are computed.

Shapes: B batch, T tokens, d1 and d2 projected sizes, W levels and S scales of a row.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any

import torch

from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout, encode
from lorif_core.gradients.expert_projection import ExpertSide
from lorif_core.gradients.projection import ProjectionSet, Side
from lorif_core.gradients.whitened_product import LayerRoots
from lorif_core.model.expert_routing import Observer, Routing
from lorif_core.model.experts import ExpertMatrix, TrackedModule
from lorif_core.model.token_rows import rows_per_example
from lorif_core.spec import LayerSpec, exclusion

_NONE: Mapping[int, ExpertSide] = MappingProxyType({})
# Enough to encode many layers at once, but small next to a model that has so many layers.
_PENDING_BYTES = 256 * 2**20


@dataclass(slots=True)
class _Pairs:
    """Projected pairs of one layer: one pair each time the model calls one of its modules."""

    A: list[torch.Tensor] = field(default_factory=list)
    E: list[torch.Tensor] = field(default_factory=list)
    uses: int = 0

    def joined(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All uses as one pair, along the tokens: A^T E + A'^T E' is one product over the tokens of both uses."""
        return _cat(self.A, dim=1), _cat(self.E, dim=1)


TakePair = Callable[[int, torch.Tensor, torch.Tensor], None]
_Project = Callable[[torch.Tensor], torch.Tensor]


class GradientCapture:
    """Context manager: while open, every backward pass of the model passes each layer's pair (A, E) to `take`.

    Args:
        layers: the tracked layers; messages contain their names.
        modules: per layer the modules that have its weight; `rows_per_example` says which inputs they may have.
        projections: P_in and P_out per layer.
        take: called once per layer and backward pass with the layer's number, A (B, n, d1) and E (B, n, d2) with
            the rows of all calls of the layer's modules; usually there is one call and a row per token.
        expert_sides: the projection of the wide side of each layer of fused experts, by its number.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        modules: Sequence[Sequence[TrackedModule]],
        projections: ProjectionSet,
        take: TakePair,
        expert_sides: Mapping[int, ExpertSide] = _NONE,
    ) -> None:
        self._layers, self._modules, self._take = layers, modules, take
        self._projections, self._expert_sides = projections.layers, expert_sides
        self._handles: list[Any] = []
        self._shape = (0, 0)
        self._pairs: defaultdict[int, _Pairs] = defaultdict(_Pairs)
        self._shared_input: tuple[torch.Tensor, str, torch.Tensor] | None = None

    def __enter__(self) -> "GradientCapture":
        for index, modules in enumerate(self._modules):
            for module in modules:
                if not isinstance(module, ExpertMatrix):
                    self._handles.append(module.register_forward_hook(self._forward_hook(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._reset()

    def observers(self) -> dict[ExpertMatrix, Observer]:
        """What must observe the matrices of experts, which have no hooks."""
        return {
            module: self._observer(index, is_down=module.is_down)
            for index, modules in enumerate(self._modules)
            for module in modules
            if isinstance(module, ExpertMatrix)
        }

    def start(self, batch: int, tokens: int) -> None:
        """Prepare for one forward and backward pass of a (batch, tokens) input."""
        self._reset()
        self._shape = (batch, tokens)

    def finish(self) -> None:
        """After the backward pass, pass on pairs of layers of which some call does not affect the loss."""
        for index, pairs in self._pairs.items():
            if 0 < len(pairs.E) < pairs.uses:
                self._take(index, *pairs.joined())
        self._reset()

    def _reset(self) -> None:
        self._pairs.clear()
        self._shared_input = None

    def _forward_hook(self, index: int) -> Any:
        inner, outer = self._projections[index].inner, self._projections[index].outer

        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
            if not torch.is_grad_enabled():
                return None  # this call is a constant for the loss
            if not isinstance(output, torch.Tensor) or len(inputs) != 1:
                raise self._refusal(index, f"returns {type(output).__name__} for {len(inputs)} inputs")
            A_BTd = self._project_input(index, inner, inputs[0])
            return self._watched(index, output, A_BTd, lambda grad: outer(self._as_batch(index, grad)))

        return hook

    def _observer(self, index: int, *, is_down: bool) -> Observer:
        """The counterpart of a forward hook for a matrix of fused experts."""
        inner, outer = self._projections[index].inner, self._projections[index].outer
        wide = self._expert_sides[index]

        def first(rows: torch.Tensor, output: torch.Tensor, routing: Routing) -> torch.Tensor:
            if not torch.is_grad_enabled():
                return output
            A_BTd = self._project_input(index, inner, rows)

            def project(grad: torch.Tensor) -> torch.Tensor:
                return self._as_batch(index, wide.by_token(grad, routing))

            return self._watched(index, output, A_BTd, project)

        def down(rows: torch.Tensor, output: torch.Tensor, routing: Routing) -> torch.Tensor:
            if not torch.is_grad_enabled():
                return output
            weights = routing.weights.detach()
            weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
            A_BTd = self._as_batch(index, wide.by_token(rows.detach() * weights[:, None], routing))
            return self._watched(index, output, A_BTd, lambda grad: outer(self._as_batch(index, grad)))

        return down if is_down else first

    def _watched(self, index: int, output: torch.Tensor, A_BTd: torch.Tensor, project: _Project) -> torch.Tensor:
        """The output, with a hook that pairs A with its projected gradient."""
        if not output.requires_grad:
            # the graph begins here; the clone lets the model modify the output in place
            output = output.detach().requires_grad_(True).clone()
        self._pairs[index].uses += 1
        output.register_hook(self._gradient_hook(index, A_BTd, project))
        return output

    def _gradient_hook(self, index: int, A_BTd: torch.Tensor, project: _Project) -> Any:
        def hook(grad: torch.Tensor) -> None:
            pairs = self._pairs[index]
            pairs.A.append(A_BTd)
            pairs.E.append(project(grad))
            if len(pairs.E) == pairs.uses:
                self._take(index, *pairs.joined())
                pairs.A, pairs.E = [], []

        return hook

    def _project_input(self, index: int, inner: Side, x: torch.Tensor) -> torch.Tensor:
        """A = X P_in; layers that project the same tensor with the same matrix share the product."""
        shared = self._shared_input
        if shared is not None and shared[0] is x and shared[1] == inner.key:
            return shared[2]
        A_BTd = inner(self._as_batch(index, x.detach()))
        self._shared_input = (x, inner.key, A_BTd)
        return A_BTd

    def _as_batch(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """x as (B, n, d), with the n rows of each example.

        Raises:
            UserError: the shape of x does not show which rows belong to which example.
        """
        batch, tokens = self._shape
        rows = rows_per_example(x.shape, batch, tokens)
        if rows is None:
            raise self._refusal(index, f"has tensors of shape {tuple(x.shape)} for {batch} x {tokens} tokens")
        return x.reshape(batch, rows, x.shape[-1])

    def _refusal(self, index: int, fault: str) -> UserError:
        name = self._layers[index].name
        return UserError(
            f"the layer {name} {fault}, so its gradient cannot be captured; leave it out with model.exclude: "
            f"{exclusion([name])}"
        )


@dataclass(slots=True)
class _PendingLayers:
    """Pairs of layers of one shape, to be encoded together."""

    layers: list[int] = field(default_factory=list)
    A: list[torch.Tensor] = field(default_factory=list)
    E: list[torch.Tensor] = field(default_factory=list)
    bytes: int = 0


class CodeSink:
    """Encodes the pairs of a batch, many layers at once, and collects their codes.

    Args:
        layout: row layout of the codes.
        unbiased: multiply the scales so that <G, decoded> = |G|^2 (`codes.encode`).
        roots: per layer the whitening that the pairs do not have yet; None if they have it or need none.
    """

    def __init__(self, layout: CodeLayout, *, unbiased: bool, roots: Sequence[LayerRoots] | None = None) -> None:
        self._layout, self._unbiased, self._roots = layout, unbiased, roots
        self._batch = 0
        self._pending: defaultdict[tuple[torch.device, int, int, int], _PendingLayers] = defaultdict(
            _PendingLayers
        )
        self._codes = torch.empty(0)
        self._scales = torch.empty(0)

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        """Prepare for a batch of `batch` examples; codes and scales get `dtype`."""
        self._batch = batch
        self._pending.clear()
        self._codes = torch.zeros(batch, self._layout.width, device=device, dtype=dtype)
        self._scales = torch.zeros(batch, self._layout.scales, device=device, dtype=dtype)

    def take(self, index: int, A_BTd: torch.Tensor, E_BTd: torch.Tensor) -> None:
        """Add a pair (A, E) of one layer from `GradientCapture`."""
        pending = self._pending[E_BTd.device, A_BTd.shape[1], A_BTd.shape[2], E_BTd.shape[2]]
        pending.layers.append(index)
        pending.A.append(A_BTd)
        pending.E.append(E_BTd)
        pending.bytes += (A_BTd.numel() + E_BTd.numel()) * E_BTd.element_size()
        if pending.bytes >= _PENDING_BYTES:
            self._encode(pending)

    def codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels (B, W) and scales (B, S) of the batch; zeros for a layer that received no gradient."""
        for pending in self._pending.values():
            self._encode(pending)
        codes, scales = self._codes, self._scales
        self._codes, self._scales = torch.empty(0), torch.empty(0)
        return codes, scales

    def _encode(self, pending: _PendingLayers) -> None:
        if not pending.layers:
            return
        A, E = _cat(pending.A, dim=0), _cat(pending.E, dim=0)
        roots = None if self._roots is None else [self._roots[index] for index in pending.layers]
        encoded = encode(A, E, self._layout.code, unbiased=self._unbiased, roots=roots)
        for index, codes, scales in zip(
            pending.layers, encoded.codes.split(self._batch), encoded.scales.split(self._batch), strict=True
        ):
            slot = self._layout.slots[index]
            self._codes[:, slot.start : slot.stop] = codes
            self._scales[:, slot.scales] = scales
        pending.layers, pending.A, pending.E, pending.bytes = [], [], [], 0


def _cat(tensors: list[torch.Tensor], dim: int) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=dim)
