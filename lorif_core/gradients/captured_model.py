"""A model with the projections of its tracked layers: batches run, and each layer's pair (A, E) goes to a sink."""

from collections.abc import Sequence

import torch

from lorif_core.corpus.batches import Batch
from lorif_core.errors import UserError
from lorif_core.gradients.capture import GradientCapture, TakePair
from lorif_core.gradients.expert_projection import ExpertSide, expert_side
from lorif_core.gradients.projection import ProjectionSet
from lorif_core.gradients.roots import SideMatrices
from lorif_core.gradients.side_scales import SideScales
from lorif_core.gradients.whitened_product import LayerRoots
from lorif_core.model.experts import ExpertMatrix, TrackedModule
from lorif_core.model.experts_forward import observed
from lorif_core.model.layers import modules_by_weight, tracked_module
from lorif_core.model.loading import LoadedModel
from lorif_core.model.loss import TakeLosses
from lorif_core.model.transfer import to_device
from lorif_core.spec import LayerSpec, ProjectionSpec


class CapturedModel:
    """Runs batches under a `GradientCapture`.

    Args:
        loaded: the model.
        layers: tracked layers; their modules are looked up by name.
        projection: kind, factor, seed.
        take: receives the pairs, as in `GradientCapture`; those of folded projections are not whitened yet.
        roots: roots for whitened projections; those of folded ones are applied by the sink.
        scales: scales of Adam's metric.

    Attributes:
        loaded: the model.
        layers: the tracked layers.
        modules: per layer the modules that have its weight.
        projections: P_in and P_out per layer.
        expert_sides: per layer of fused experts the projection of its wide side.

    Raises:
        UserError: the model lacks one of the layers.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        layers: Sequence[LayerSpec],
        projection: ProjectionSpec,
        take: TakePair,
        roots: SideMatrices | None = None,
        scales: SideScales | None = None,
    ) -> None:
        self.loaded, self.layers = loaded, layers
        self.modules = _modules(loaded, layers)
        placements = [(first.weight.device, first.weight.dtype) for first, *_ in self.modules]
        self.projections = ProjectionSet(layers, projection, placements, roots, scales)
        self.expert_sides: dict[int, ExpertSide] = {}
        for index, ((first, *_), layer) in enumerate(zip(self.modules, layers, strict=True)):
            if isinstance(first, ExpertMatrix):
                sides = self.projections.layers[index]
                wide, size = (sides.inner, layer.d1) if first.is_down else (sides.outer, layer.d2)
                self.expert_sides[index] = expert_side(wide, first.experts, size)
        self._take = take

    def run(
        self, batch: Batch, take: TakePair | None = None, take_losses: TakeLosses | None = None
    ) -> torch.Tensor:
        """One forward and backward pass; returns (B,) token-summed losses.

        Args:
            batch: the examples.
            take: receives the pairs of this pass instead of the model's own sink.
            take_losses: gets the losses of the tokens.
        """
        ids = to_device(torch.from_numpy(batch.input_ids), self.loaded.device)
        sink = take or self._take
        capture = GradientCapture(self.layers, self.modules, self.projections, sink, self.expert_sides)
        with capture, observed(capture.observers()):
            capture.start(*ids.shape)
            losses = self.loaded.backward(ids, torch.from_numpy(batch.labels), take_losses)
            capture.finish()
        return losses


def layer_roots(
    loaded: LoadedModel, layers: Sequence[LayerSpec], projection: ProjectionSpec, roots: SideMatrices | None
) -> list[LayerRoots] | None:
    """Per layer the whitening of the captured pairs, on the layer's device; None if they have it or need none.

    Raises:
        UserError: the model lacks one of the layers.
    """
    if roots is None or not (projection.is_folded and projection.is_whitened):
        return None
    dtype = wide_dtype(loaded)
    likes = [torch.empty(0, device=first.weight.device, dtype=dtype) for first, *_ in _modules(loaded, layers)]
    return roots.of_layers(likes)


def wide_dtype(loaded: LoadedModel) -> torch.dtype:
    """The dtype of captured pairs: float64 for a model in float64, else float32."""
    return torch.float64 if loaded.dtype == torch.float64 else torch.float32


def _modules(loaded: LoadedModel, layers: Sequence[LayerSpec]) -> list[list[TrackedModule]]:
    """Per layer the modules that have its weight."""
    try:
        weights = [tracked_module(loaded.model, layer.name).weight for layer in layers]
    except AttributeError as error:
        raise UserError(f"the model lacks a layer of the index: {error}") from None
    sharing = modules_by_weight(loaded.model)
    return [sharing[id(weight)] for weight in weights]
