"""Invariant: words without a dash are told apart by their form, wherever they stand."""

import io
from typing import Any

import pytest

from flows.command_words import parse_command
from lorif_core.config_file import load_config
from tests.integration.lorif import run


def parsed(*words: str) -> dict[str, Any]:
    return vars(parse_command(words))


@pytest.mark.parametrize(
    "words",
    [["idx", "how?", "storage.region=x"], ["idx", "storage.region=x", "how?"],
     ["idx", "storage.region=x", "--top-k", "3", "how?"], ["--top-k", "3", "idx", "how?", "storage.region=x"]],
    ids=" ".join,
)  # fmt: skip
def test_a_question_is_the_word_that_is_no_override(words: list[str]) -> None:
    options = parsed("query", *words)
    assert (options["index"], options["text"], options["overrides"]) == ("idx", "how?", ["storage.region=x"])


@pytest.mark.parametrize("text", ["a = 5", "x=1", "-", "é", "1", " spaces ", "--flag", "model.path=x"])
def test_any_text_can_be_asked(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a plain word if it has no other meaning, with --text= if it has, and from stdin."""
    if text in ("--flag", "model.path=x"):
        assert parsed("query", "idx", f"--text={text}")["text"] == text
    elif text != "-":
        assert parsed("query", "idx", text)["text"] == text
    monkeypatch.setattr("sys.stdin", io.StringIO(text + "\n"))
    assert parsed("query", "idx", "-")["text"] == text


@pytest.mark.parametrize("command", ["check", "build", "update"])
@pytest.mark.parametrize("place", ["plain", "with space", "a: b", "null", "[x]", "s3://bucket/a=1/b", "123", "'"])
def test_index_model_and_corpus_stand_for_a_config(command: str, place: str) -> None:
    """Whatever YAML would read in the texts; other keys are overrides."""
    options = parsed(command, place, "--model", place, "code.rank=4", "--corpus", place, "corpus.id=null")
    config = load_config(options["config"], options["overrides"])
    assert (config.index, config.model.path, config.corpus.uri) == (place, place, place)
    assert config.code.rank == 4 and config.corpus.id is None


def test_no_words_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0 and "lorif demo" in out and all(name in out for name in ("init", "query", "verify"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_has_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--print-completion", shell)
    assert code == 0 and all(word in out for word in ("attribute", "publish-incomplete", "two-stage", "cosine"))
