"""Invariant: a preset only sets defaults: explicit keys win, and keys of another kind are not mixed in."""

from typing import Any

import pytest

from lorif_core.config_file import parse_config
from lorif_core.errors import UserError
from lorif_core.lifecycle.plan import curvature_spec, projection_spec
from lorif_core.presets import PRESETS

MINIMAL = {"index": "i", "model": {"path": "m"}, "corpus": {"uri": "c"}}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_config(name: str) -> None:
    config = parse_config({**MINIMAL, "preset": name})
    for section, keys in PRESETS[name].items():
        for key, value in keys.items():
            assert getattr(getattr(config, section), key) == value


def test_balanced_is_the_default() -> None:
    assert parse_config(MINIMAL) == parse_config({**MINIMAL, "preset": "balanced"})


def test_explicit_keys_win() -> None:
    config = parse_config({**MINIMAL, "preset": "balanced", "code": {"rank": 2}, "projection": {"fold": 3}})
    assert (config.code.kind, config.code.rank, config.code.dtype) == ("cut", 2, "sign")
    assert (config.projection.kind, config.projection.whiten, config.projection.fold) == ("folded", True, 3)


def test_another_kind_brings_its_own_defaults() -> None:
    config = parse_config({**MINIMAL, "preset": "compact", "code": {"kind": "dense"}})
    assert (config.code.kind, config.code.rank, config.code.dtype) == ("dense", 1, "float16")
    assert config.curvature.kind == "none" and config.projection.whiten


@pytest.mark.parametrize("preset", ["balanced", "paper"])
@pytest.mark.parametrize("projection", [{"kind": "random"}, {"kind": "folded"}, {"whiten": False}])
def test_the_curvature_follows_the_whitening(preset: str, projection: dict[str, Any]) -> None:
    """The default is never a plain dot product of gradients that are not whitened."""
    config = parse_config({**MINIMAL, "preset": preset, "projection": projection})
    assert config.projection.whiten is (preset == "balanced" and projection == {"kind": "folded"})
    assert config.curvature.kind == ("none" if config.projection.whiten else "woodbury")


def test_a_random_projection_may_be_whitened() -> None:
    config = parse_config({**MINIMAL, "projection": {"kind": "random", "whiten": True, "factor": 2}})
    assert config.curvature.kind == "none" and config.projection.factor == 2


@pytest.mark.parametrize(
    ("projection", "message"),
    [
        ({"factor": 8}, "factor has no effect with kind folded"),
        ({"kind": "random", "fold": 2}, "fold has no effect with kind random"),
        ({"kind": "random", "max_side": 64}, "max_side has no effect with kind random"),
        ({"kind": "whitened"}, "write kind: random and whiten: true"),
    ],
)
def test_keys_of_another_projection_are_refused(projection: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config({**MINIMAL, "projection": projection})


def test_a_budget_of_bytes_is_for_codes_with_a_rank() -> None:
    assert parse_config({**MINIMAL, "code": {"bytes": 4096}}).code.bytes == 4096
    with pytest.raises(UserError, match="kind dense has none"):
        parse_config({**MINIMAL, "preset": "quality", "code": {"bytes": 4096}})


def test_a_setting_without_effect_is_refused() -> None:
    with pytest.raises(UserError, match=r"curvature\.rank has no effect with curvature\.kind none"):
        parse_config({**MINIMAL, "curvature": {"rank": 8}})


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match="preset = 'best' is not allowed"):
        parse_config({**MINIMAL, "preset": "best"})


def test_cut_factors_require_signs() -> None:
    with pytest.raises(UserError, match="dtype: sign"):
        parse_config({**MINIMAL, "code": {"kind": "cut", "dtype": "int8"}})


@pytest.mark.parametrize("whiten", [True, False])
def test_the_metric_of_adam_may_be_whitened_or_not(whiten: bool) -> None:
    config = parse_config({**MINIMAL, "projection": {"whiten": whiten}, "curvature": {"kind": "adam"}})
    assert (config.projection.kind, config.projection.whiten) == ("folded", whiten)
    projection = projection_spec(config)
    assert projection.kind == ("folded-adam-whitened" if whiten else "folded-adam") and projection.has_metric
    assert curvature_spec(config).kind == "none", "nothing is fitted"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"preset": "paper", "curvature": {"kind": "adam"}},
            "adam needs projection.kind folded instead of random",
        ),
        (
            {"curvature": {"kind": "none", "optimizer_state": "o.pt"}},
            "optimizer_state has no effect with kind none",
        ),
        ({"curvature": {"optimizer_state": "o.pt"}}, r"optimizer_state has no effect with curvature\.kind none"),
        ({"curvature": {"kind": "adam", "optimizer_state": "s3://key:secret@b/o.pt"}}, "carries credentials"),
    ],
)
def test_settings_that_the_metric_of_adam_cannot_have_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config({**MINIMAL, **keys})
