"""Invariant: the state of the optimiser is found beside the model or where CONFIG says, also in an object store,
and is no part of the checkpoint; an index that has scales needs none.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.errors import UserError
from lorif_core.gradients.side_scales import SideScales, adam_scales
from lorif_core.lifecycle.optimizer_scales import check_optimizer, scales_of
from lorif_core.lifecycle.plan import make_spec, preflight
from lorif_core.model.checkpoint import locate
from lorif_core.model.layers import out_by_in, tracked_module
from lorif_core.model.loading import load_skeleton
from lorif_core.model.optimizer_state import PREFIX
from lorif_core.spec import LayerSpec
from lorif_core.tables.store import Store
from tasks.demo.object_store import MotoServer, upload_folder

BUCKET = "optimizers"


def moments(model: Any, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator) for name, weight in model.named_parameters()}


def put(folder: Path, model: Any, name: str, seed: int) -> None:
    """A file with moments that the seed makes."""
    named = moments(model, seed)
    if name.endswith(".safetensors"):
        save_file({f"{PREFIX}{key}": values for key, values in named.items()}, folder / name)
        return
    entries = {number: {"exp_avg_sq": values} for number, values in enumerate(named.values())}
    torch.save({"state": entries, "param_groups": [{"params": list(entries), "eps": 0.0}]}, folder / name)


def config_of(tmp_path: Path, model: Path | str, **sections: Any) -> Config:
    return parse_config(
        {
            "index": str(tmp_path / "index"), "model": {"path": str(model)}, "projection": {"whiten": False},
            "corpus": {"uri": "c", "max_length": 64}, "curvature": {"kind": "adam"}, **sections,
        }
    )  # fmt: skip


def scales_from(model: Any, layers: tuple[LayerSpec, ...], seed: int) -> SideScales:
    """What the file of a seed should give."""
    named = moments(model, seed)
    names = {id(weight): name for name, weight in model.named_parameters()}
    modules = [tracked_module(model, layer.name) for layer in layers]
    return adam_scales(layers, (out_by_in(m, named[names[id(m.weight)]].sqrt().square()) for m in modules))


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("place", ["beside", "elsewhere"])
@pytest.mark.parametrize("names", [("optimizer.pt", "optimizer.safetensors"), ("optimizer.safetensors",)])
def test_the_state_is_found(
    names: tuple[str, ...], place: str, remote: bool, model_folder: Path, moto: MotoServer, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    skeleton = load_skeleton(config_of(tmp_path, folder).model, config_of(tmp_path, folder).storage)
    plain = locate(config_of(tmp_path, folder).model, config_of(tmp_path, folder).storage).fingerprint()
    (tmp_path / "states").mkdir()
    for seed, name in enumerate(names):
        put(folder if place == "beside" else tmp_path / "states", skeleton.model, name, seed)
    model, states, storage = str(folder), str(tmp_path / "states"), {}
    if remote:
        moto.make_bucket(BUCKET)
        key = f"{place}-{len(names)}"
        for source in (folder, tmp_path / "states"):
            upload_folder(moto, source, BUCKET, f"{key}-{source.name}")
        model, states, storage = f"s3://{BUCKET}/{key}-model", f"s3://{BUCKET}/{key}-states", moto.storage()
    sections: dict[str, Any] = {"storage": storage}
    if place == "elsewhere":
        sections["curvature"] = {"kind": "adam", "optimizer_state": f"{states}/{names[0]}"}
    config = config_of(tmp_path, model, **sections)
    assert locate(config.model, config.storage).fingerprint() == plain
    spec = make_spec(config, skeleton)
    assert spec.projection.is_adam and spec.projection.scales is None
    check_optimizer(config, skeleton, spec.layers)
    found = scales_of(config, spec, skeleton.model)
    assert found is not None and found.name == scales_from(skeleton.model, spec.layers, 0).name


def test_a_new_index_needs_the_state_and_one_that_has_scales_does_not(model_folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "the cat"}\n')
    config = config_of(tmp_path, model_folder, corpus={"uri": str(corpus), "max_length": 64})
    with pytest.raises(
        UserError, match=r"needs the optimiser's state, but the model .* has no file optimizer.pt or"
    ):
        preflight(config)
    assert not (tmp_path / "index").exists()
    skeleton, store = load_skeleton(config.model, config.storage), Store(config.index)
    spec = make_spec(config, skeleton)
    scales = scales_from(skeleton.model, spec.layers, 0)
    store.create(spec.with_scales(store.scales.add(scales, spec.layers)))
    preflight(config)
    assert make_spec(config, skeleton).projection.scales == scales.name
    found = scales_of(config, make_spec(config, skeleton), skeleton.model)
    assert found is not None and found.name == scales.name
