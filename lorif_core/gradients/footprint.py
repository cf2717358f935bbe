"""Memory of a forward and backward pass, from a rehearsal with fake tensors, which have shapes but no numbers.

A rehearsal runs the code of a build (the model, its capture and the codes) and counts the bytes that are alive at
once. So it knows what every architecture keeps for its backward pass. It takes a second or two, and needs neither
weights nor memory.

Shapes: B batch, T tokens.
"""

import copy
import logging
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lorif_core.corpus.batches import Batch
from lorif_core.gradients.capture import CodeSink
from lorif_core.gradients.captured_model import CapturedModel, wide_dtype
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.whitening import CovarianceSink
from lorif_core.model.head import Head, inner_model
from lorif_core.model.loading import LoadedModel
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec

log = logging.getLogger(__name__)

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class BatchShape:
    """B examples of T tokens."""

    examples: int
    tokens: int


class Rehearsal:
    """Runs batches of a model that has no weights, and returns the bytes of tensors that are alive at once.

    The bytes are those beyond the weights. Steps return None if the model's code needs numbers.

    Args:
        model: the model on the meta device; it stays as it is.
        dtype: dtype of its weights.
        layers: tracked layers.
        projection: their projection.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype, layers: Sequence[LayerSpec], projection: ProjectionSpec
    ) -> None:
        self._meta, self._dtype, self._layers = model, dtype, layers
        self._whitens = projection.is_whitened and projection.is_folded
        # the matrices of random projections would be real; folded ones of the same sizes need the same memory
        self._projection = ProjectionSpec("folded", 1, projection.seed)

    def calibration(self, shape: BatchShape) -> int | None:
        """Of a batch of the calibration, besides the sums of the covariances."""

        def run(loaded: LoadedModel) -> None:
            sink = CovarianceSink([(layer.d1, layer.d2) for layer in self._layers])
            batch = _batch(shape)
            sink.start(batch.lengths, shape.tokens)
            CapturedModel(loaded, self._layers, self._projection, sink.take).run(batch)

        return self._peak(run)

    def codes(self, shape: BatchShape, code: CodeSpec, *, decode: bool = False) -> int | None:
        """Of a batch whose gradients become codes, and with `decode` gradients again, as those of queries do."""

        def run(loaded: LoadedModel) -> None:
            layout, wide = CodeLayout(self._layers, code), wide_dtype(loaded)
            roots = [
                (torch.empty(layer.d1, layer.d1, dtype=wide), torch.empty(layer.d2, layer.d2, dtype=wide))
                for layer in self._layers
            ]
            sink = CodeSink(layout, unbiased=self._whitens, roots=roots if self._whitens else None)
            sink.start(shape.examples, loaded.device, wide)
            CapturedModel(loaded, self._layers, self._projection, sink.take).run(_batch(shape))
            codes, scales = sink.codes()
            if decode:
                _ = [layout.decode(codes, scales, layer) for layer in range(len(self._layers))]

        return self._peak(run)

    def _peak(self, run: Callable[[LoadedModel], None]) -> int | None:
        try:
            with _fake(self._meta, self._dtype) as model, _AnsweredAllocations(model) as allocations:
                run(LoadedModel(model, None, _head(model), 1))
        except Exception as error:  # noqa: BLE001  the code of a model may raise anything when it needs numbers
            log.info("the memory of this model cannot be estimated without weights (%r)", error)
            return None
        finally:
            _forget_constants()
        return allocations.peak


class _Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are not the model's, while it is open."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.peak = self._bytes = 0
        own = [*model.parameters(), *model.buffers()]
        self._own = [tensor.untyped_storage() for tensor in own]  # kept, so that no other one gets their ids
        self._alive = {id(storage) for storage in self._own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count the storages of its results that are new."""
        results = self._run(func, args, kwargs or {})
        for item in tree_iter(results):
            if isinstance(item, torch.Tensor):
                self._count(item.untyped_storage())
        return results

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._alive:
            return
        self._alive.add(id(storage))
        self._bytes += storage.nbytes()
        self.peak = max(self.peak, self._bytes)
        weakref.finalize(storage, self._free, id(storage), storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._bytes -= size


class _AnsweredAllocations(_Allocations):
    """The same for fake tensors: questions about numbers, which they lack, are answered for the largest case."""

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is _aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1  # all is finite, and nothing is padded
        if func is _aten.nonzero.default:
            return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.long)  # every token is scored
        if func is _aten._grouped_mm.default and args[0].dim() == 2 < args[1].dim():
            return args[0].new_empty(len(args[0]), args[1].shape[2])  # torch has fakes only for bfloat16
        return super()._run(func, args, kwargs)


@contextmanager
def _fake(meta: Any, dtype: torch.dtype) -> Iterator[Any]:
    """A copy of a model on fake tensors of the CPU, with parameters of a dtype; other tensors become fake too."""
    model = copy.deepcopy(meta)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes: dict[int, Any] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in fakes:
                    kept = torch.empty(parameter.shape, dtype=dtype if parameter.is_floating_point() else None)
                    fakes[id(parameter)] = torch.nn.Parameter(kept, requires_grad=False)
                module._parameters[name] = None if parameter is None else fakes[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        yield model


def _forget_constants() -> None:
    """Clear the caches of constants, because those that were made in a rehearsal are fake."""
    for name, module in list(sys.modules.items()):
        if name.startswith("lorif_core.gradients."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _head(model: Any) -> Head:
    """The head as a run would find it, as far as memory depends on it; a cap or a scale changes little."""
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if isinstance(layer, torch.nn.Linear) and inner_model(model) is not model:
        return Head(True, layer.out_features)
    return Head(False, model.config.get_text_config().vocab_size)


def _batch(shape: BatchShape) -> Batch:
    ids = np.zeros((shape.examples, shape.tokens), np.int64)
    return Batch(list(range(shape.examples)), ids, ids.copy(), np.full(shape.examples, shape.tokens))
