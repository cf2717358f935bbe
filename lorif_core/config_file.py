"""Reads CONFIG: YAML, `key.sub=value` overrides, and one clear message for the first error."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lorif_core.config import ComputeConfig, Config, ModelConfig, StorageConfig, UpdateConfig
from lorif_core.errors import UserError

Validated = TypeVar("Validated", bound=BaseModel)


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read CONFIG from a YAML file and apply `key.sub=value` overrides (values are YAML).

    Raises:
        UserError: the file does not exist or is not YAML, a key is unknown (the message names the nearest one), a
            value is out of range, or an override is malformed.
    """
    path = Path(path)
    raw = read_keys(path, "config", "index, model and corpus", overrides)
    return parse_config(raw, str(path))


def read_keys(path: str | Path, kind: str, examples: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """The keys of a YAML file with `key.sub=value` overrides, not validated yet.

    Args:
        path: the file.
        kind: what the file is, for the message of an error.
        examples: keys that it has, for the message of an error.
        overrides: overrides; their values are YAML.

    Raises:
        UserError: the file cannot be read, is not YAML or has no keys, or an override is malformed.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"the {kind} file {path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the {kind} file {path} is not valid YAML: {_yaml_problem(error)}") from None
    if not isinstance(raw, dict):
        raise UserError(f"the {kind} file {path} must contain keys such as {examples}")
    for override in overrides or []:
        apply_override(raw, override)
    return raw


def validate_keys(model: type[Validated], raw: dict[str, Any], source: str) -> Validated:
    """A section, or a whole file, from plain keys.

    Raises:
        UserError: one sentence for the first error; it begins with `source`.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain_invalid(error, model)}") from None


def parse_config(raw: dict[str, Any], source: str = "the config") -> Config:
    """Validate a plain dict; see `validate_keys`."""
    return validate_keys(Config, raw, source)


def parse_options(overrides: list[str], allowed: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The `key.sub=value` arguments of a command without CONFIG, by section.

    Raises:
        UserError: an argument is malformed, or sets a key of a section that is not allowed.
    """
    raw: dict[str, Any] = {}
    for override in overrides:
        apply_override(raw, override)
    for section, keys in raw.items():
        if section not in allowed or not isinstance(keys, dict):
            listed = " and ".join(f"{name}.*" for name in allowed)
            raise UserError(f"{section} cannot be set here; this command takes keys of {listed}")
    return raw


def parse_storage(keys: dict[str, Any]) -> StorageConfig:
    """Validate the storage section alone; see `validate_keys`."""
    return validate_keys(StorageConfig, keys, "storage")


def parse_compute(keys: dict[str, Any]) -> ComputeConfig:
    """Validate the compute section alone."""
    return validate_keys(ComputeConfig, keys, "compute")


def parse_update(keys: dict[str, Any]) -> UpdateConfig:
    """Validate the update section alone."""
    return validate_keys(UpdateConfig, keys, "update")


def parse_model(keys: dict[str, Any], path: str) -> ModelConfig:
    """Validate the model section alone; `path` is used unless the keys have one."""
    return validate_keys(ModelConfig, {"path": path, **keys}, "model")


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set a key of nested dicts from `key.sub=value`. Raises UserError if the override is malformed."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"the override {key!r} must have the form key.sub=value")
    *parents, leaf = key.strip().split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"the override {key!r} goes below {parent}, which is a plain value")
        node = child
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"the value of the override {key!r} is not valid YAML; quote it") from None


def _explain_invalid(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem as one sentence; unknown keys come first, because they can cause missing ones."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join(_without_union_tags(location, root))
    in_storage = location[:1] == ["storage"] or root is StorageConfig
    if problem["type"] == "extra_forbidden" and in_storage:
        advice = "credentials come from the environment, a profile or a role, never from the config"
        return f"unknown key {key!r}{_nearest(location, root)}; {advice}"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_nearest(location, root)}"
    if problem["type"] == "missing":
        return f"the key {key!r} is missing"
    if problem["type"] == "value_error":
        reason = str(problem["ctx"]["error"])
        return f"{key}: {reason}" if key else reason
    same_key = [p for p in problems if _without_union_tags([str(x) for x in p["loc"]], root) == key.split(".")]
    reasons = " or ".join(dict.fromkeys(_one_line(str(p["msg"])) for p in same_key))
    # a value of the storage section, or a nested value, may contain a credential by mistake, so it is not shown
    shown = "" if in_storage or isinstance(problem["input"], dict | list) else f" = {problem['input']!r}"
    return f"{key}{shown} is not allowed: {reasons}"


def _without_union_tags(location: list[str], root: Any) -> list[str]:
    """The location without the union member (`literal[...]`, `float`) that pydantic appends."""
    model = root
    keys = []
    for part in location:
        keys.append(part)
        model = _child_model(model, part)
        if model is None:
            break
    return keys


def _child_model(model: Any, key: str) -> Any:
    field = model.model_fields.get(key)
    is_section = field is not None and isinstance(field.annotation, type)
    return field.annotation if is_section and issubclass(field.annotation, BaseModel) else None


def _nearest(location: list[str], root: Any) -> str:
    model = root
    for part in location[:-1]:
        model = _child_model(model, part)
    prefix = ".".join([*location[:-1], ""])
    matches = difflib.get_close_matches(location[-1], model.model_fields, n=1, cutoff=0.5)
    if matches:
        return f"; did you mean {prefix + matches[0]!r}?"
    return f"; the keys there are {', '.join(prefix + name for name in model.model_fields)}"


def _yaml_problem(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """The problem and its position, without the line itself, which may contain a credential."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"
    return _one_line(str(error))


def _one_line(text: str) -> str:
    return " ".join(text.split())
