"""Reading CONFIG: YAML, `key.sub=value` overrides, and one sentence for the first thing that is wrong."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lorif_core.config import ComputeConfig, Config, ModelConfig, StorageConfig, UpdateConfig
from lorif_core.errors import UserError


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read CONFIG from a YAML file and apply `key.sub=value` overrides (values are YAML).

    Raises:
        UserError: the file is missing or not YAML, a key is unknown (the nearest one is named), a value is
            out of range, or an override is malformed.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the config file {path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the config file {path} is not valid YAML: {_yaml_problem(error)}") from None
    if not isinstance(raw, dict):
        raise UserError(f"the config file {path} must hold keys such as index, model and corpus")
    for override in overrides or []:
        apply_override(raw, override)
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], where: str = "the config") -> Config:
    """Validate a plain dict. Raises UserError with one sentence for the first thing that is wrong."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {explain_invalid(error)}") from None


def parse_options(overrides: list[str], allowed: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """`key.sub=value` words of a command that takes an index and no CONFIG, by section.

    Raises:
        UserError: a word is malformed, or sets a key of another section.
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
    """The storage section alone. Raises UserError with one sentence for the first thing that is wrong."""
    try:
        return StorageConfig.model_validate(keys)
    except ValidationError as error:
        raise UserError(f"storage: {explain_invalid(error, StorageConfig)}") from None


def parse_compute(keys: dict[str, Any]) -> ComputeConfig:
    """The compute section alone."""
    try:
        return ComputeConfig.model_validate(keys)
    except ValidationError as error:
        raise UserError(f"compute: {explain_invalid(error, ComputeConfig)}") from None


def parse_update(keys: dict[str, Any]) -> UpdateConfig:
    """The update section alone."""
    try:
        return UpdateConfig.model_validate(keys)
    except ValidationError as error:
        raise UserError(f"update: {explain_invalid(error, UpdateConfig)}") from None


def parse_model(keys: dict[str, Any], path: str) -> ModelConfig:
    """The model section alone, for a checkpoint whose place is known."""
    try:
        return ModelConfig.model_validate({"path": path, **keys})
    except ValidationError as error:
        raise UserError(f"model: {explain_invalid(error, ModelConfig)}") from None


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set a key of nested dicts from `key.sub=value`. Raises UserError for one that is malformed."""
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


def explain_invalid(error: ValidationError, root: Any = None) -> str:
    """The first problem as one sentence; unknown keys come first, as they cause the missing ones."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    root = root or Config
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
    # a value of the storage section, or a nested one, may be or hold a credential that was put there by mistake
    shown = "" if in_storage or isinstance(problem["input"], dict | list) else f" = {problem['input']!r}"
    return f"{key}{shown} is not allowed: {reasons}"


def _without_union_tags(location: list[str], root: Any) -> list[str]:
    """Pydantic appends the tried union member (`literal[...]`, `float`) to the location; drop it."""
    node = root
    known = []
    for part in location:
        known.append(part)
        node = _child_model(node, part)
        if node is None:
            break
    return known


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
    """What is wrong and where, without the line itself, which may hold a credential."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"
    return _one_line(str(error))


def _one_line(text: str) -> str:
    return " ".join(text.split())
