"""Token batch -> codes: one backward pass of the model, seen through projections, kept as codes.

Shapes: B batch, T tokens, W code width, L layers, D = d1 d2.
"""

from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.batches import Batch
from lorif_core.capture import GradientCapture
from lorif_core.errors import UserError
from lorif_core.factors import CodeLayout
from lorif_core.model import LoadedModel
from lorif_core.projection import ProjectionSet
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec

NON_FINITE_LOSS = "the loss is not finite"
NON_FINITE_GRADIENT = "the gradient is not finite"
ZERO_GRADIENT = "the gradient is zero"

_STORED = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class ExtractedBatch:
    """What one batch gave, on the CPU.

    Attributes:
        losses: (B,) float32 token-summed losses.
        codes: (B, W) in the dtype of storage.
        scales: (B, L) float32.
        faults: per example the reason why its row must not be stored, or None.
    """

    losses: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    faults: list[str | None]


class Extractor:
    """Turns batches into codes with one model; holds the projections, so make one and keep it.

    Args:
        loaded: the model.
        layers: tracked layers by spec; their modules are found by name.
        projection: kind, factor, seed.
        code: what to keep of each gradient.

    Raises:
        UserError: the model lacks one of the layers.
    """

    def __init__(
        self, loaded: LoadedModel, layers: tuple[LayerSpec, ...], projection: ProjectionSpec, code: CodeSpec
    ) -> None:
        self.layout = CodeLayout(layers, code)
        self._loaded = loaded
        try:
            modules = [loaded.model.get_submodule(layer.name) for layer in layers]
        except AttributeError as error:
            raise UserError(f"the model has not the layers of the index: {error}") from None
        placements = [(module.weight.device, module.weight.dtype) for module in modules]
        self._capture = GradientCapture(modules, self.layout, ProjectionSet(layers, projection, placements))

    def extract(self, batch: Batch) -> ExtractedBatch:
        """Codes of a batch, in storage dtype, with the reasons for rows that must be left out."""
        losses, codes, scales = self._run(batch)
        faults = _faults(losses, scales)
        stored = codes.to(_STORED[self.layout.code.dtype])
        return ExtractedBatch(
            losses.float().cpu().numpy(), stored.cpu().numpy(), scales.float().cpu().numpy(), faults
        )

    def gradients(self, batch: Batch) -> tuple[np.ndarray, list[torch.Tensor]]:
        """Losses (B,), and per layer the decoded gradients (B, D) in full precision, on the CPU."""
        losses, codes, scales = self._run(batch)
        decoded = [self.layout.decode(codes, scales, layer).cpu() for layer in range(len(self.layout.slots))]
        return losses.float().cpu().numpy(), decoded

    def _run(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device = self._loaded.device
        ids = torch.from_numpy(batch.input_ids).to(device)
        labels = torch.from_numpy(batch.labels).to(device)
        wide = torch.float64 if self._loaded.dtype == torch.float64 else torch.float32
        with self._capture as capture:
            capture.start(ids.shape[0], ids.shape[1], device, wide)
            losses = self._loaded.backward(ids, labels)
            codes, scales = capture.take()
        return losses, codes, scales


def _faults(losses: torch.Tensor, scales: torch.Tensor) -> list[str | None]:
    finite_loss = torch.isfinite(losses).tolist()
    finite_scales = torch.isfinite(scales).all(dim=1).tolist()
    nonzero = (scales != 0).any(dim=1).tolist()
    return [
        NON_FINITE_LOSS if not ok_loss
        else NON_FINITE_GRADIENT if not ok_scales
        else None if any_gradient
        else ZERO_GRADIENT
        for ok_loss, ok_scales, any_gradient in zip(finite_loss, finite_scales, nonzero, strict=True)
    ]  # fmt: skip
