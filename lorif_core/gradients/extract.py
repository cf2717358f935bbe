"""Token batch -> codes: one backward pass of the model, whose projected gradients are encoded.

Shapes: B batch, T tokens, W levels and S scales of a row, D = d1 d2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.corpus.batches import Batch
from lorif_core.gradients.capture import CodeSink
from lorif_core.gradients.captured_model import CapturedModel, layer_roots, wide_dtype
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.quantisation import LEVELS_PER_BYTE, pack
from lorif_core.gradients.roots import SideMatrices
from lorif_core.gradients.self_check import check_capture
from lorif_core.gradients.token_parts import TokenParts
from lorif_core.gradients.whitening import Covariances, CovarianceSink
from lorif_core.model.loading import LoadedModel
from lorif_core.model.transfer import HostCopy
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec

NON_FINITE_LOSS = "the loss is not finite"
NON_FINITE_GRADIENT = "the gradient is not finite"
ZERO_GRADIENT = "the gradient is zero"

STORED_DTYPES: dict[str, type[np.generic]] = {
    "float32": np.float32, "float16": np.float16, "int8": np.int8, "int4": np.uint8, "sign": np.uint8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExtractedBatch:
    """Losses and codes of one batch, on the host.

    Attributes:
        losses: (B,) float32 token-summed losses.
        codes: (B, W) in the stored dtype, or (B, bytes) uint8 if levels are packed.
        scales: (B, S) float32.
        faults: per example the reason why its row must not be stored, or None.
    """

    losses: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    faults: list[str | None]


class Extraction:
    """The codes of a batch on their way to the host, which they reach in one transfer.

    Args:
        losses: (B,).
        codes: (B, W) in the stored dtype, or packed.
        scales: (B, S).
    """

    def __init__(self, losses: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        parts = losses.float(), scales.float(), codes  # in the order of their alignment
        self._shapes = [part.shape for part in parts]
        self._dtype = torch.empty(0, dtype=codes.dtype).numpy().dtype
        self._copy = HostCopy(torch.cat([part.reshape(-1).view(torch.uint8) for part in parts]))

    def result(self) -> ExtractedBatch:
        """The batch, once its codes are there."""
        data, arrays = self._copy.wait().numpy(), []
        for shape, dtype in zip(self._shapes, (np.float32, np.float32, self._dtype), strict=True):
            size = shape.numel() * np.dtype(dtype).itemsize
            arrays.append(data[:size].view(dtype).reshape(shape))
            data = data[size:]
        losses, scales, codes = arrays
        return ExtractedBatch(losses, codes, scales, _faults(losses, scales))


class Extractor:
    """Turns batches into codes with one model.

    It creates all projection matrices, which is slow, so reuse one instance.

    Args:
        loaded: the model.
        layers: tracked layers; their modules are looked up by name.
        projection: kind, factor, seed.
        code: the code of each gradient.
        roots: roots for whitened projections.

    Raises:
        UserError: the model lacks one of the layers.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        layers: tuple[LayerSpec, ...],
        projection: ProjectionSpec,
        code: CodeSpec,
        roots: SideMatrices | None = None,
    ) -> None:
        self.layout = CodeLayout(layers, code)
        self._loaded = loaded
        self._roots = layer_roots(loaded, layers, projection, roots)
        self._sink = CodeSink(self.layout, unbiased=projection.is_whitened, roots=self._roots)
        self._model = CapturedModel(loaded, layers, projection, self._sink.take, roots)

    def check(self) -> None:
        """See `check_capture`."""
        check_capture(self._model)

    def start(self, batch: Batch) -> Extraction:
        """Codes of a batch in the stored dtype; a GPU may still compute them when this returns."""
        losses, codes, scales = self._run(batch)
        return Extraction(losses, to_stored(codes, self.layout), scales)

    def extract(self, batch: Batch) -> ExtractedBatch:
        """Codes of a batch in the stored dtype, and why rows must not be stored."""
        return self.start(batch).result()

    def gradients(self, batch: Batch) -> tuple[np.ndarray, list[torch.Tensor]]:
        """Losses (B,), and per layer the gradients (B, D) decoded before the conversion to the stored dtype."""
        losses, codes, scales = self._run(batch)
        layers = range(len(self.layout.slots))
        copies = [HostCopy(self.layout.decode(codes, scales, layer)) for layer in layers]
        return HostCopy(losses.float()).wait().numpy(), [copy.wait() for copy in copies]

    def token_parts(self, batch: Batch, take: Callable[[int, TokenParts], None]) -> None:
        """Run a batch without encoding it; `take` gets the number of each layer with a gradient, and its parts."""
        tokens = batch.input_ids.shape[1]

        def take_pair(layer: int, A_BTd: torch.Tensor, E_BTd: torch.Tensor) -> None:
            take(layer, TokenParts(A_BTd, E_BTd, None if self._roots is None else self._roots[layer], tokens))

        self._model.run(batch, take_pair)

    def _run(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self._sink.start(len(batch.input_ids), self._loaded.device, wide_dtype(self._loaded))
        losses = self._model.run(batch)
        return losses, *self._sink.codes()


def to_stored(codes: torch.Tensor, layout: CodeLayout) -> torch.Tensor:
    """Codes (B, W) in the stored dtype, or (B, bytes) packed."""
    dtype = layout.code.dtype
    if dtype in LEVELS_PER_BYTE:
        return torch.cat([pack(codes[:, slot.start : slot.stop], dtype) for slot in layout.slots], dim=1)
    return codes.to(getattr(torch, dtype))


class Calibrator:
    """Sums the covariances of projected activations and gradients, before their whitening, over batches.

    Args:
        loaded: the model.
        layers: tracked layers.
        projection: the projections to whiten.
    """

    def __init__(self, loaded: LoadedModel, layers: tuple[LayerSpec, ...], projection: ProjectionSpec) -> None:
        self._sink = CovarianceSink([(layer.d1, layer.d2) for layer in layers])
        self._model = CapturedModel(loaded, layers, projection.without_whitening(), self._sink.take)

    def check(self) -> None:
        """See `check_capture`."""
        check_capture(self._model)

    def add(self, batch: Batch) -> None:
        """Add a batch: one forward and backward pass."""
        self._sink.start(batch.lengths, batch.input_ids.shape[1])
        self._model.run(batch)

    def reset(self) -> None:
        """Begin at zero with the next batch."""
        self._sink.reset()

    @property
    def covariances(self) -> Covariances:
        """The sums so far."""
        return self._sink.covariances


def _faults(losses_B: np.ndarray, scales_BS: np.ndarray) -> list[str | None]:
    """Per example the reason why its row must not be stored, or None."""
    finite_loss, finite_scales = np.isfinite(losses_B), np.isfinite(scales_BS).all(axis=1)
    nonzero = (scales_BS != 0).any(axis=1)
    return [
        NON_FINITE_LOSS if not ok_loss
        else NON_FINITE_GRADIENT if not ok_scales
        else None if any_gradient
        else ZERO_GRADIENT
        for ok_loss, ok_scales, any_gradient in zip(finite_loss, finite_scales, nonzero, strict=True)
    ]  # fmt: skip
