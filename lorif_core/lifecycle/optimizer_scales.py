"""Where an index gets the scales of Adam's metric from: once from the state of the optimiser, then from itself."""

import logging
from pathlib import Path, PurePosixPath
from typing import Any

from lorif_core.config import Config
from lorif_core.errors import UserError
from lorif_core.gradients.side_scales import SideScales, adam_scales
from lorif_core.model.checkpoint import OPTIMIZER_FILES, locate
from lorif_core.model.layers import out_by_in, tracked_module
from lorif_core.model.loading import Skeleton, load_skeleton
from lorif_core.model.optimizer_state import read_moments
from lorif_core.spec import IndexSpec, LayerSpec
from lorif_core.storage.filesystem import source_file, storage_errors
from lorif_core.storage.lease import Lease
from lorif_core.storage.node_cache import NodeFolder
from lorif_core.tables.store import Store

log = logging.getLogger(__name__)


def check_optimizer(config: Config, skeleton: Skeleton, layers: tuple[LayerSpec, ...]) -> None:
    """Check that a new index can have the scales that the config asks for; only shapes are read.

    Raises:
        UserError: the state of the optimiser is missing, cannot be read, or is not that of the model.
    """
    if config.curvature.kind != "adam":
        return
    stored = Store(config.index, config.storage).newest_spec()
    if stored is None or stored.projection.scales is None:
        read_moments(_state_file(config), skeleton.model, layers)


def scales_of(config: Config, spec: IndexSpec, model: Any) -> SideScales | None:
    """The scales of a spec: those that the index has, else those of the optimiser; None if it needs none.

    Raises:
        UserError: as `check_optimizer`, or moments are not finite.
    """
    if not spec.projection.is_adam or spec.projection.scales is not None:
        return Store(config.index, config.storage).scales.read(spec.projection)
    moments = read_moments(_state_file(config), model, spec.layers)
    modules = [tracked_module(model, layer.name) for layer in spec.layers]
    squares = (out_by_in(module, of.squared()) for module, of in zip(modules, moments, strict=True))
    return adam_scales(spec.layers, squares)


def with_scales(config: Config, spec: IndexSpec, lease: Lease) -> IndexSpec:
    """The spec with its scales, after they are stored; unchanged if it has them, or needs none.

    Raises:
        UserError: as `scales_of`.
    """
    if not spec.projection.is_adam or spec.projection.scales is not None:
        return spec
    scales = scales_of(config, spec, load_skeleton(config.model, config.storage).model)
    assert scales is not None
    lease.confirm()
    name = Store(config.index, config.storage).scales.add(scales, spec.layers)
    log.info("the second moments of %d layers were read from the state of the optimiser", len(spec.layers))
    return spec.with_scales(name)


def _state_file(config: Config) -> Path:
    """The local file with the state of the optimiser, fetched if it is remote. Raises UserError without one."""
    uri = config.curvature.optimizer_state
    if uri is None:
        checkpoint = locate(config.model, config.storage)
        found = checkpoint.optimizer_state()
        if found is None:
            lacks = "is on the hub" if checkpoint.on_hub else f"has no file {' or '.join(OPTIMIZER_FILES)}"
            raise UserError(
                f"curvature.kind adam needs the optimiser's state, but the model {config.model.path} {lacks}; set "
                f"curvature.optimizer_state to the path of its file"
            )
        return found
    with storage_errors(uri):
        file = source_file(uri, PurePosixPath(uri).name, config.storage)
    if not uri.startswith("s3://"):
        return Path(file.path)
    folder = NodeFolder(uri, [file], config.storage)
    folder.fetch([file])
    return folder.path / file.name
