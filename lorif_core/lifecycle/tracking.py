"""The tracked layers of a model and the sizes of their projected gradients, which need each other.

A budget of bytes chooses the number of layers by the bytes of a term, which depend on the sizes of the sides. The
automatic size of the sides depends on the layers (`side_limit.py`). An index keeps the sizes that it has.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

from lorif_core.config import Config
from lorif_core.config_sections import ProjectionConfig
from lorif_core.gradients.byte_budget import FEWEST_BLOCKS, late_blocks_of
from lorif_core.gradients.side_limit import automatic_side
from lorif_core.model.layer_choice import LATE_BLOCKS, Choice
from lorif_core.model.layers import choose_layers, folded_layer_specs, layer_specs
from lorif_core.model.loading import Skeleton
from lorif_core.spec import IndexSpec, LayerSpec
from lorif_core.tables.store import Store


@dataclass(frozen=True, slots=True)
class TrackedLayers:
    """The chosen layers, why they were chosen, and the shapes of their projected gradients."""

    choice: Choice
    specs: tuple[LayerSpec, ...]


def tracked_layers(config: Config, skeleton: Skeleton) -> TrackedLayers:
    """The layers that the config chooses; under `max_side: auto` with the sizes of the rows that the index has.

    Raises:
        UserError: as `choose_layers`, or the store refuses access.
    """
    automatic = has_automatic_sizes(config.projection)
    stored = Store(config.index, config.storage).newest_spec() if automatic else None
    return layers_of_model(config, skeleton.model, skeleton.uncapturable, stored)


def has_automatic_sizes(projection: ProjectionConfig) -> bool:
    """Whether the sizes of the sides are left to `side_limit.py`."""
    return projection.kind == "folded" and projection.max_side == "auto"


def layers_of_model(
    config: Config, model: torch.nn.Module, uncapturable: Mapping[str, str], stored: IndexSpec | None = None
) -> TrackedLayers:
    """The layers of a model that the config chooses.

    Args:
        config: the config.
        model: the model, or its skeleton.
        uncapturable: layers that cannot be captured, with the reason.
        stored: spec of the rows of the index, whose sizes apply under `max_side: auto`; None if it has none.

    Raises:
        UserError: as `choose_layers`.
    """
    sizing, limit = _Sizing(config, model, uncapturable), config.projection.max_side
    if config.projection.kind == "random":
        return sizing.tracked(None)
    if limit != "auto":
        return sizing.tracked(limit)
    if stored is not None:  # a size above the largest side has no effect, so that side stands for the former limit
        kept = sizing.tracked(max(max(layer.d1, layer.d2) for layer in stored.layers))
        if kept.specs == stored.layers:
            return kept
    memory = config.compute.memory_gb * 2**30 if config.projection.whiten else math.inf
    return sizing.tracked(
        automatic_side(lambda side: sizing.tracked(side).specs, sizing.fewest, config.code, memory)
    )


class _Sizing:
    """The layers of a model as a function of the largest size of a side."""

    def __init__(self, config: Config, model: torch.nn.Module, uncapturable: Mapping[str, str]) -> None:
        self._projection, self._budget = config.projection, config.code.bytes
        rule, exclude = config.model.layers, config.model.exclude
        self._choice = cache(lambda blocks: choose_layers(model, rule, exclude, uncapturable, blocks))

    def tracked(self, side: int | None) -> TrackedLayers:
        """The tracked layers."""
        blocks = LATE_BLOCKS
        if self._budget is not None:
            blocks = late_blocks_of(self._budget, self._shaped(1, side))
        return TrackedLayers(self._choice(blocks), self._shaped(blocks, side))

    def fewest(self, side: int) -> tuple[LayerSpec, ...]:
        """The layers that are tracked at least."""
        return self._shaped(FEWEST_BLOCKS, side)

    def _shaped(self, blocks: int, side: int | None) -> tuple[LayerSpec, ...]:
        layers, section = self._choice(blocks).layers, self._projection
        if section.kind == "random":
            return layer_specs(layers, section.factor)
        return folded_layer_specs(layers, None if section.fold == "auto" else section.fold, side)
