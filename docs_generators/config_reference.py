"""The reference of CONFIG and of the EVALUATION file, from their pydantic models."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs_generators.json_schema import type_in_words
from docs_generators.markdown import anchor, code, fenced, page, paragraphs, sentence, table
from lorif_core.config import Config
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.presets import DEFAULT_PRESET, PRESETS

REQUIRED_IN_CONFIG = {
    "index": "./my-index",
    "model": {"path": "./my-checkpoint"},
    "corpus": {"uri": "./my-corpus"},
}
REQUIRED_IN_EVALUATION = {
    "config": {"model": {"path": "./my-checkpoint"}, "corpus": {"uri": "./my-corpus"}},
    "queries": "./my-queries.jsonl",
    "methods": {"my method": {"preset": "balanced", "code": {"rank": 8}}},
}

_CONFIG_INTRODUCTION = f"""\
# Configuration

CONFIG is the YAML file that `lorif check`, `build`, `update` and `attribute` take with `-c`. Three keys have
no default: `index`, `model.path` and `corpus.uri`. Any key can be overridden on the command line as
`key.sub=value`, for example `code.rank=16`; the value is YAML. An unknown key is refused, and the
message names the nearest valid key.

The defaults on this page are those of the preset `{DEFAULT_PRESET}`, which applies unless `preset` names
another one. A key that you write wins over the preset. [Presets](#presets) lists the keys that a preset sets.

The keys of `model`, `projection`, `code` and `corpus` that change stored numbers (checkpoint, layers,
projection, code, tokenisation) make the *spec* of an index. A build with a different spec is refused, and the
message names the keys that differ.
"""
_EVALUATION_INTRODUCTION = """\
# Evaluation file

The YAML file that `lorif evaluate lds`, `recall` and `tail-patch` take with `-c`. It names a corpus and a
checkpoint (as in CONFIG), how models are trained on parts of that corpus, and the methods to compare. Keys can
be overridden on the command line as `key.sub=value`.
"""
_PRESETS_INTRODUCTION = """\
## Presets

The value of each key under each preset. A section whose `kind` you set to another value than the preset's
takes nothing from the preset; the last column has the defaults that apply then.
"""


def config_page() -> str:
    """The page `reference/config.md`."""
    return page(
        _CONFIG_INTRODUCTION,
        "## The whole file {#whole-file}",
        "All keys with their defaults:",
        fenced("yaml", whole_config()),
        *_sections(Config, parsed_config(DEFAULT_PRESET)),
        _PRESETS_INTRODUCTION,
        _presets_table(),
    )


def evaluation_page() -> str:
    """The page `reference/evaluation.md`."""
    return page(
        _EVALUATION_INTRODUCTION,
        "## The whole file {#whole-file}",
        "All keys with their defaults; the values of `config`, `queries` and `methods` are examples:",
        fenced("yaml", whole_evaluation()),
        *_sections(EvaluationConfig, EvaluationConfig.model_validate(REQUIRED_IN_EVALUATION)),
    )


def parsed_config(preset: str) -> Config:
    """CONFIG with the required keys and a preset, and defaults for everything else."""
    return Config.model_validate({"preset": preset, **REQUIRED_IN_CONFIG})


def whole_config() -> str:
    """CONFIG as YAML, with every key."""
    return as_yaml(parsed_config(DEFAULT_PRESET))


def whole_evaluation() -> str:
    """The EVALUATION file as YAML, with every key."""
    return as_yaml(EvaluationConfig.model_validate(REQUIRED_IN_EVALUATION))


def as_yaml(values: BaseModel) -> str:
    """A model as YAML, in the order of its fields; required keys are marked."""
    lines = []
    for name, field in type(values).model_fields.items():
        value = getattr(values, name)
        if isinstance(value, BaseModel):
            lines.append(f"{name}:")
            lines += [f"  {line}" for line in as_yaml(value).splitlines()]
        else:
            lines += _yaml_entry(name, value, field)
    return "\n".join(lines) + "\n"


def _yaml_entry(name: str, value: Any, field: FieldInfo) -> list[str]:
    mark = "  # required" if field.is_required() else ""
    if not isinstance(value, Mapping):
        return [f"{name}: {_yaml_value(value)}{mark}"]
    return [f"{name}:{mark}", *(f"  {key}: {_yaml_value(entry)}" for key, entry in value.items())]


def _yaml_value(value: Any) -> str:
    """A value on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All keys of a file, dotted, without the sections themselves."""
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is None:
            yield f"{prefix}{name}", field
        else:
            yield from keys(section, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a section; None for a plain value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _sections(model: type[BaseModel], values: BaseModel) -> Iterator[str]:
    """The keys at the top of the file, then each section: its description and a table of its keys."""
    yield "## Top level {#top-level}"
    yield _key_table(model, values, "")
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is not None:
            yield f"## {name} {{#{name}}}"
            yield paragraphs(section.__doc__)
            yield _key_table(section, getattr(values, name), f"{name}.")


def _key_table(model: type[BaseModel], values: BaseModel, prefix: str) -> str:
    return table(["Key", "Type", "Default", "Meaning"], list(_key_rows(model, values, prefix)))


def _key_rows(model: type[BaseModel], values: BaseModel, prefix: str) -> Iterator[list[str]]:
    """A row for each key, also those of sections inside a section."""
    schemas = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is None:
            default = "required" if field.is_required() else code(_yaml_value(getattr(values, name)))
            key = f"{anchor(prefix + name)}{code(prefix + name)}"
            yield [key, type_in_words(schemas[name]), default, sentence(field.description)]
        elif prefix:
            yield from _key_rows(section, getattr(values, name), f"{prefix}{name}.")


def _presets_table() -> str:
    names = sorted(
        {f"{section}.{key}" for preset in PRESETS.values() for section in preset for key in preset[section]}
    )
    columns = {preset: parsed_config(preset) for preset in PRESETS}
    rows = []
    for name in names:
        section, _, key = name.partition(".")
        values = [_yaml_value(getattr(getattr(config, section), key)) for config in columns.values()]
        plain = section_of(Config.model_fields[section])
        assert plain is not None
        default = plain.model_fields[key].get_default(call_default_factory=True)
        rows.append([code(name), *map(code, values), code(_yaml_value(default))])
    header = [code(preset) + (" (default)" if preset == DEFAULT_PRESET else "") for preset in PRESETS]
    return table(["Key", *header, "With another `kind`"], rows)
