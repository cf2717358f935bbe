"""Reads CONFIG: YAML, `key.sub=value` overrides, and one message that has every mistake."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lorif_core.config import ComputeConfig, Config, ModelConfig, StorageConfig, UpdateConfig
from lorif_core.errors import UserError

Validated = TypeVar("Validated", bound=BaseModel)


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> Config:
    """Read CONFIG from a YAML file and apply `key.sub=value` overrides (values are YAML).

    Args:
        path: the file; None if the overrides are all there is.
        overrides: overrides.

    Raises:
        UserError: the file does not exist or is not YAML, a key is unknown (the message names the nearest one), a
            value is out of range, or an override is malformed.
    """
    if path is None:
        raw: dict[str, Any] = {}
        for override in overrides or []:
            apply_override(raw, override)
        return parse_config(raw, "the command")
    raw = read_keys(Path(path), "config", "index, model and corpus", overrides)
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
        UserError: all mistakes in one line; it begins with `source`.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        mistakes = _mistakes(error, raw, model)
    if len(mistakes) == 1:
        raise UserError(f"{source}: {mistakes[0]}")
    numbered = " ".join(f"({number}) {mistake}" for number, mistake in enumerate(mistakes, start=1))
    raise UserError(f"{source}: {len(mistakes)} mistakes: {numbered}")


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
            near = [] if section in Config.model_fields else difflib.get_close_matches(section, allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{section} cannot be set here{hint}; this command takes keys of {listed}")
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


def _mistakes(error: ValidationError, raw: Mapping[str, Any], root: type[BaseModel]) -> list[str]:
    """Each mistake as a sentence, unknown keys first; without those that an unknown key may have caused."""
    unknown = list(_unknown_keys(raw, root))
    by_key: dict[str, list[Any]] = {}
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        if problem["type"] == "missing" and any(_nearest_key(key, root) == location for key in unknown):
            continue
        of_section = problem["type"] == "value_error" and any(key[: len(location)] == location for key in unknown)
        if problem["type"] not in ("extra_forbidden", "invalid_key") and not of_section:
            by_key.setdefault(".".join(_without_union_tags(location, root)), []).append(problem)
    found = [_explain_unknown(key, root) for key in unknown]
    return found + [_explain_invalid(key, problems, root) for key, problems in by_key.items()]


def _unknown_keys(
    raw: Mapping[str, Any], model: type[BaseModel], parents: Sequence[str] = ()
) -> Iterator[list[str]]:
    """The keys that no section has. pydantic names them only if it finds nothing else in the section or file."""
    for name, value in raw.items():
        child = _child_model(model, str(name))
        if name not in model.model_fields:
            yield [*parents, str(name)]
        elif child is not None and isinstance(value, Mapping):
            yield from _unknown_keys(value, child, [*parents, str(name)])


def _explain_unknown(location: list[str], root: type[BaseModel]) -> str:
    near, parents = _nearest_key(location, root), location[:-1]
    if near is None:
        keys = [".".join([*parents, name]) for name in _section(parents, root).model_fields]
        hint = f"; the keys there are {', '.join(keys)}"
    else:
        hint = f"; did you mean {'.'.join(near)!r}?"
    if location[:1] == ["storage"] or root is StorageConfig:
        hint += "; credentials come from the environment, a profile or a role, never from the config"
    return f"unknown key {'.'.join(location)!r}{hint}"


def _explain_invalid(key: str, problems: Sequence[Any], root: type[BaseModel]) -> str:
    """The problems of one key as a sentence; a value that may have several types has one of each."""
    problem = problems[0]
    if problem["type"] == "missing":
        return f"the key {key!r} is missing"
    if problem["type"] == "value_error":
        reason = str(problem["ctx"]["error"])
        return f"{key}: {reason}" if key else reason
    reasons = " or ".join(dict.fromkeys(_one_line(str(problem["msg"])) for problem in problems))
    # a value of the storage section, or a nested value, may contain a credential by mistake, so it is not shown
    in_storage = key.partition(".")[0] == "storage" or root is StorageConfig
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


def _section(location: Sequence[str], root: Any) -> Any:
    """The model of a section."""
    for part in location:
        root = _child_model(root, part)
    return root


def _nearest_key(location: list[str], root: Any) -> list[str] | None:
    """The key of the same section that resembles an unknown one most, if any does."""
    *parents, name = location
    matches = difflib.get_close_matches(name, _section(parents, root).model_fields, n=1, cutoff=0.5)
    return [*parents, matches[0]] if matches else None


def _yaml_problem(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """The problem and its position, without the line itself, which may contain a credential."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"
    return _one_line(str(error))


def _one_line(text: str) -> str:
    return " ".join(text.split())
