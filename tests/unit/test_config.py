"""Invariant: every key of CONFIG and EVALUATION has a description, from which the reference page is generated."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorif_core.config import Config
from lorif_core.config_file import load_config
from lorif_core.config_sections import Section
from lorif_core.evaluation.config import EvaluationConfig


def keys_without_description(model: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if not (field.description or "").strip():
            yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys_without_description(field.annotation, f"{prefix}{name}.")


def sections_of(model: type[Section]) -> set[str]:
    return {
        name
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


@pytest.mark.parametrize("model", [Config, EvaluationConfig])
def test_every_key_has_a_description(model: type[Section]) -> None:
    assert list(keys_without_description(model)) == []


def test_the_descriptions_of_all_sections_are_checked() -> None:
    """`keys_without_description` finds sections by their type, so an optional or nested type would hide one."""
    assert sections_of(Config) == {
        "model", "corpus", "projection", "code", "curvature", "query", "update", "compute", "storage",
    }  # fmt: skip
    assert sections_of(EvaluationConfig) == {"training", "subsets", "recall", "tail_patch"}


def test_a_key_without_description_is_reported() -> None:
    class Incomplete(Section):
        """A section with one description."""

        described: int = 0
        """A description."""
        undescribed: int = 0

    class File(Section):
        """A file with a section."""

        section: Incomplete = Incomplete()
        """A section."""

    assert list(keys_without_description(File)) == ["section.undescribed"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_config_of_an_editor_for_windows_is_read(tmp_path: Path, encoding: str) -> None:
    lines = ["index: ./é", "model:", "  path: m", "corpus:", "  uri: |-", "    c", ""]
    (tmp_path / "config.yaml").write_bytes("\r\n".join(lines).encode(encoding))
    config = load_config(tmp_path / "config.yaml")
    assert (config.index, config.model.path, config.corpus.uri) == ("./é", "m", "c")
