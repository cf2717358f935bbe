"""Invariant: the defaults have sizes for every model, and an index keeps the sizes that it has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.gradients.byte_budget import code_spec
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.whitening import whitening_bytes
from lorif_core.lifecycle.plan import check_curvature, check_settings, make_spec
from lorif_core.lifecycle.tracking import layers_of_model, tracked_layers
from lorif_core.model.loading import load_skeleton
from lorif_core.presets import PRESETS
from lorif_core.spec import IndexSpec
from lorif_core.tables.store import Store
from tests.real_shapes import llama_skeleton


def config_of(index: str = "i", **sections: Any) -> Config:
    required: dict[str, Any] = {
        "index": index,
        "model": {"path": "m"},
        "corpus": {"uri": "c", "tokens": "t", "max_length": 512},
    }
    for name, section in sections.items():
        required[name] = {**required.get(name, {}), **section} if isinstance(section, dict) else section
    return parse_config(required)


@pytest.mark.parametrize("size", ["1B", "8B", "70B"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layers", ["auto", "all", "mlp"])
def test_no_model_is_refused_for_its_size(size: str, preset: str, layers: str) -> None:
    skeleton, config = llama_skeleton(size), config_of(preset=preset, model={"path": "m", "layers": layers})
    specs = layers_of_model(config, skeleton.model, {}).specs
    check_settings(config, skeleton, specs)
    check_curvature(config, specs, 10**6)
    assert CodeLayout(specs, code_spec(config.code, specs)).bytes_per_example > 0
    if preset != "paper":
        assert whitening_bytes(specs) <= config.compute.memory_gb * 2**30 / 2


@pytest.mark.parametrize("size", ["1B", "8B", "70B"])
@pytest.mark.parametrize("kib", [2, 4, 16, 64])
def test_budgets_of_bytes_fit_every_size(size: str, kib: int) -> None:
    config = config_of(code={"bytes": kib * 1024})
    specs = layers_of_model(config, llama_skeleton(size).model, {}).specs
    code = code_spec(config.code, specs)
    assert len(specs) >= 3 and (code.kind == "dense" or code.rank >= 4)


def test_too_little_memory_is_no_reason_to_refuse_automatic_sizes() -> None:
    config = config_of(model={"layers": "all"}, compute={"memory_gb": 0.001})
    skeleton = llama_skeleton("1B")
    specs = layers_of_model(config, skeleton.model, {}).specs
    check_settings(config, skeleton, specs)
    assert max(max(layer.d1, layer.d2) for layer in specs) == 128


LIMITS = [{"max_side": 200}, {"max_side": 700}, {"max_side": 1024}, {"max_side": None}, {}]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("keys", [{}, {"code": {"bytes": 3000}}, {"model": {"layers": "all"}}])
def test_an_index_keeps_its_sizes_under_auto(limit: dict[str, Any], keys: dict[str, Any]) -> None:
    """Whatever limit they were made with, and whatever the memory of a worker is now."""
    model = llama_skeleton("1B").model
    built = layers_of_model(config_of(projection=limit, **keys), model, {}).specs
    stored = replace(EMPTY, layers=built)
    for memory_gb in (0.01, 0.5, 4, 1000):
        now = config_of(compute={"memory_gb": memory_gb}, **keys)
        assert layers_of_model(now, model, {}, stored).specs == built


EMPTY = IndexSpec("", "float32", (), None, None, None)  # type: ignore[arg-type]


def test_sizes_that_are_set_win_over_those_of_the_index() -> None:
    model = llama_skeleton("1B").model
    stored = replace(EMPTY, layers=layers_of_model(config_of(), model, {}).specs)
    fewer = layers_of_model(config_of(projection={"max_side": 256}), model, {}, stored).specs
    assert {layer.d1 for layer in fewer} == {256}


def test_rows_in_the_store_decide_the_sizes(tmp_path: Path, model_folder: Path) -> None:
    """The spec of a build is that of the rows, although its memory would make the sides smaller now."""
    paths = {"model": {"path": str(model_folder)}, "corpus": {"uri": "c", "max_length": 64}}
    before = config_of(str(tmp_path / "index"), projection={"max_side": 12}, **paths)
    skeleton = load_skeleton(before.model, before.storage)
    spec = make_spec(before, skeleton)
    Store(before.index).create(spec)
    now = config_of(str(tmp_path / "index"), **paths)
    assert make_spec(now, skeleton).hash == spec.hash
    assert max(layer.d1 for layer in tracked_layers(now, skeleton).specs) == 12
