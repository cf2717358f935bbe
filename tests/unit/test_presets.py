"""Invariant: a preset only sets defaults: explicit keys win, and keys of another kind are not mixed in."""

import pytest

from lorif_core.config_file import parse_config
from lorif_core.errors import UserError
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
    config = parse_config({**MINIMAL, "preset": "balanced", "code": {"rank": 2}, "projection": {"factor": 8}})
    assert (config.code.kind, config.code.rank, config.code.dtype) == ("cut", 2, "sign")
    assert (config.projection.kind, config.projection.factor) == ("whitened", 8)


def test_another_kind_brings_its_own_defaults() -> None:
    config = parse_config({**MINIMAL, "preset": "compact", "code": {"kind": "dense"}})
    assert (config.code.kind, config.code.rank, config.code.dtype) == ("dense", 1, "float16")
    assert config.curvature.kind == "none" and config.projection.kind == "whitened"


def test_the_curvature_follows_the_projection() -> None:
    """The default is never a plain dot product of randomly projected gradients."""
    config = parse_config({**MINIMAL, "projection": {"kind": "random"}})
    assert config.curvature.kind == "woodbury" and config.projection.factor == 16


def test_a_setting_without_effect_is_refused() -> None:
    with pytest.raises(UserError, match=r"curvature\.rank has no effect with curvature\.kind none"):
        parse_config({**MINIMAL, "curvature": {"rank": 8}})


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match="preset = 'best' is not allowed"):
        parse_config({**MINIMAL, "preset": "best"})


def test_cut_factors_require_signs() -> None:
    with pytest.raises(UserError, match="dtype: sign"):
        parse_config({**MINIMAL, "code": {"kind": "cut", "dtype": "int8"}})
