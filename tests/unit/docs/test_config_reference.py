"""The reference of the configuration files has every key, described, and its whole file is valid."""

import pytest
import yaml
from pydantic import BaseModel

from docs_generators.config_reference import (
    config_page,
    evaluation_page,
    keys,
    parsed_config,
    whole_config,
    whole_evaluation,
)
from lorif_core.config import Config
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.presets import DEFAULT_PRESET, PRESETS

PAGES = [(Config, config_page), (EvaluationConfig, evaluation_page)]


@pytest.mark.parametrize(("model", "page"), PAGES)
def test_every_key_is_on_the_page_and_described(model: type[BaseModel], page) -> None:
    text = page()
    described = dict(keys(model))
    assert [name for name in described if f'<a id="{name}"></a>`{name}`' not in text] == []
    assert [name for name, field in described.items() if not field.description] == []


def test_the_whole_config_parses_to_the_defaults() -> None:
    assert Config.model_validate(yaml.safe_load(whole_config())) == parsed_config(DEFAULT_PRESET)


def test_the_whole_evaluation_file_parses_to_the_defaults() -> None:
    raw = yaml.safe_load(whole_evaluation())
    required = {name: raw[name] for name in ("config", "queries", "methods")}
    assert EvaluationConfig.model_validate(raw) == EvaluationConfig.model_validate(required)


def test_the_table_of_presets_has_every_key_that_one_sets() -> None:
    table = config_page().partition("## Presets")[2]
    for preset, sections in PRESETS.items():
        assert f"`{preset}`" in table
        for section, values in sections.items():
            for key in values:
                assert f"| `{section}.{key}` |" in table
