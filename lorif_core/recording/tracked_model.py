"""The live model of a training: its tracked layers, their modules and projections, and what cannot be recorded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lorif_core.config import Config
from lorif_core.errors import LorifError, UserError
from lorif_core.gradients.projection import ProjectionSet
from lorif_core.gradients.side_scales import SideScales, adam_scales
from lorif_core.lifecycle.plan import projection_spec
from lorif_core.lifecycle.tracking import TrackedLayers, layers_of_model
from lorif_core.model.dry_run import uncapturable_layers
from lorif_core.model.experts import ExpertMatrix
from lorif_core.model.layers import modules_by_weight, out_by_in
from lorif_core.model.optimizer_state import live_moments
from lorif_core.spec import LayerSpec, ProjectionSpec, exclusion
from lorif_core.tables.store import Store


@dataclass(frozen=True, slots=True)
class TrackedModel:
    """A model in training.

    Attributes:
        called: the module whose forward pass the training calls, without wrappers.
        layers: the tracked layers.
        modules: per layer the modules that have its weight.
        projection: how their gradients are projected, without the names of scales and covariances.
        reason: a sentence that says which layers are tracked, and why.
    """

    called: torch.nn.Module
    layers: tuple[LayerSpec, ...]
    modules: Sequence[Sequence[torch.nn.Module]]
    projection: ProjectionSpec
    reason: str

    def projections(self, scales: SideScales | None = None) -> ProjectionSet:
        """P_in and P_out per layer, before any whitening."""
        placements = [(first.weight.device, first.weight.dtype) for first, *_ in self.modules]
        return ProjectionSet(self.layers, self.projection.without_whitening(), placements, scales=scales)

    def scales(self, optimizers: Iterable[torch.optim.Optimizer]) -> SideScales:
        """The scales of Adam's metric now; every process must call this.

        Raises:
            LorifError: no optimiser has second moments of a layer, or they are not finite.
        """
        return adam_scales(self.layers, map(partial(self._square, list(optimizers)), range(len(self.layers))))

    def _square(self, optimizers: Sequence[torch.optim.Optimizer], layer: int) -> torch.Tensor:
        """P^2 (O, I) of a layer."""
        module: Any = self.modules[layer][0]
        moments = live_moments(optimizers, module.weight)
        if moments is None:
            raise LorifError(
                f"no optimiser has second moments (exp_avg_sq) of the layer {self.layers[layer].name}, so "
                f"curvature.kind adam cannot be recorded; train it with Adam, or leave it out with model.exclude"
            )
        return out_by_in(module, moments.squared())

    @property
    def pad_id(self) -> int | None:
        """Token of the padding, if the configuration of the model says."""
        config = getattr(self.called, "config", None)
        return getattr(config, "pad_token_id", None)


def track(model: torch.nn.Module, config: Config) -> TrackedModel:
    """Find the layers of a live model.

    Raises:
        UserError: the model is compiled or replicated, has experts among the layers, or as `choose_layers`.
    """
    called = unwrapped(model)
    base: Any = called.get_base_model() if hasattr(called, "get_base_model") else called
    automatic = config.projection.kind == "folded" and config.projection.max_side == "auto"
    stored = Store(config.index, config.storage).newest_spec() if automatic else None
    tracked = layers_of_model(config, base, _uncapturable(base), stored)
    modules = _modules(base, tracked)
    _refuse_compiled(called, {id(module) for of_layer in modules for module in of_layer})
    if config.curvature.kind == "adam":
        _refuse_frozen(tracked.specs, modules)
    return TrackedModel(called, tracked.specs, modules, projection_spec(config), tracked.choice.reason)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The module inside DDP, whose hooks run whoever calls it.

    Raises:
        UserError: the model is compiled as a whole, or replicated by DataParallel.
    """
    if isinstance(model, torch.nn.DataParallel):
        raise UserError(
            "the model is in nn.DataParallel, whose replicas have no hooks; use DistributedDataParallel"
        )
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    if hasattr(model, "_orig_mod"):
        raise _compiled("the model")
    return model


def _refuse_compiled(model: torch.nn.Module, tracked: set[int]) -> None:
    """Raise UserError if a compiled module contains a tracked layer: compiled code calls no hooks of gradients."""
    for name, module in model.named_modules():
        is_compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        if is_compiled and any(id(child) in tracked for child in module.modules()):
            raise _compiled(f"the module {name}" if name else "the model")


def _refuse_frozen(layers: Sequence[LayerSpec], modules: Sequence[Sequence[Any]]) -> None:
    """Raise UserError if the optimiser cannot have moments of a layer, because it is not trained."""
    pairs = zip(layers, modules, strict=True)
    frozen = [layer.name for layer, (first, *_) in pairs if not first.weight.requires_grad]
    if frozen:
        raise UserError(
            f"curvature.kind adam needs layers that are trained, and {frozen[0]} is frozen; leave it out with "
            f"model.exclude: {exclusion(frozen)}"
        )


def _compiled(what: str) -> UserError:
    return UserError(
        f"{what} is compiled, and compiled code does not call the hooks that recording needs; record a training "
        f"without torch.compile, or compile only modules without tracked layers"
    )


def _modules(model: torch.nn.Module, tracked: TrackedLayers) -> list[list[Any]]:
    sharing = modules_by_weight(model)
    modules: list[list[Any]] = []
    for layer in tracked.specs:
        module = tracked.choice.layers[layer.name]
        if isinstance(module, ExpertMatrix):
            raise UserError(
                f"the layer {layer.name} has the experts of a mixture, which cannot be recorded yet; leave it out "
                f"with model.exclude, or run lorif build after the training"
            )
        modules.append(sharing[id(module.weight)])
    return modules


def _uncapturable(model: Any) -> Mapping[str, str]:
    """The layers that a build could not capture, either, so that both choose the same ones."""
    if getattr(model, "peft_config", None):
        return {}
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            skeleton = type(model)(model.config)
    except Exception:  # noqa: BLE001  a model of the user's own may need other arguments
        return {}
    return uncapturable_layers(skeleton.eval())
