"""A model with the projections of its tracked layers: batches run, and each layer's pair (A, E) goes to a sink."""

from collections.abc import Sequence

import torch

from lorif_core.corpus.batches import Batch
from lorif_core.errors import UserError
from lorif_core.gradients.capture import GradientCapture, TakePair
from lorif_core.gradients.projection import ProjectionSet
from lorif_core.gradients.self_check import check_capture
from lorif_core.gradients.whitening import Covariances, KroneckerWhitening
from lorif_core.model.layers import modules_by_weight
from lorif_core.model.loading import LoadedModel
from lorif_core.spec import LayerSpec, ProjectionSpec


class CapturedModel:
    """Runs batches under a `GradientCapture`.

    Args:
        loaded: the model.
        layers: tracked layers; their modules are looked up by name.
        projection: kind, factor, seed.
        take: receives the pairs, as in `GradientCapture`.
        covariances: covariances for `whitened` projections.

    Raises:
        UserError: the model lacks one of the layers.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        layers: Sequence[LayerSpec],
        projection: ProjectionSpec,
        take: TakePair,
        covariances: Covariances | None = None,
    ) -> None:
        self._loaded, self._layers = loaded, layers
        self._modules = _modules(loaded, layers)
        whitening = None if covariances is None else KroneckerWhitening(covariances)
        placements = [(first.weight.device, first.weight.dtype) for first, *_ in self._modules]
        self._projections = ProjectionSet(layers, projection, placements, whitening)
        self._capture = GradientCapture(layers, self._modules, self._projections, take)

    def run(self, batch: Batch) -> torch.Tensor:
        """One forward and backward pass; returns (B,) token-summed losses."""
        ids = torch.from_numpy(batch.input_ids).to(self._loaded.device)
        labels = torch.from_numpy(batch.labels).to(self._loaded.device)
        with self._capture:
            self._capture.start(*ids.shape)
            losses = self._loaded.backward(ids, labels)
            self._capture.finish()
        return losses

    def check(self) -> None:
        """See `check_capture`. Raises UserError if a layer cannot be captured."""
        check_capture(self._loaded, self._layers, self._modules, self._projections)


def _modules(loaded: LoadedModel, layers: Sequence[LayerSpec]) -> list[list[torch.nn.Module]]:
    """Per layer the modules that have its weight."""
    try:
        weights = [loaded.model.get_submodule(layer.name).weight for layer in layers]
    except AttributeError as error:
        raise UserError(f"the model lacks a layer of the index: {error}") from None
    sharing = modules_by_weight(loaded.model)
    return [sharing[id(weight)] for weight in weights]
