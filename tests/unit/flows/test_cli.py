"""Invariant: a lack of memory of this process names the settings of the command that bound it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flows.commands.early_checks import require_file
from lorif_core.errors import UserError
from tests.integration.lorif import run

COMPUTE = "compute.tokens_per_batch from 2048 to 1024, or compute.memory_gb from 4 to 2"


@pytest.fixture
def config(model_folder: Path, corpus_file: Path, tmp_path: Path) -> str:
    raw = {
        "index": str(tmp_path / "index"),
        "model": {"path": str(model_folder)},
        "corpus": {"uri": str(corpus_file)},
        "compute": {"tokens_per_batch": 2048},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    return str(tmp_path / "config.yaml")


PLACES = {
    "build": ("lorif_core.lifecycle.plan.preflight", ["-c", "CONFIG"], COMPUTE),
    "check": ("tasks.check.check", ["-c", "CONFIG"], COMPUTE),
    "update": ("lorif_core.lifecycle.update.preflight_update", ["-c", "CONFIG"], COMPUTE),
    "serve": ("flows.serve.live_index.LiveIndex._open", ["FOLDER", "--memory-gb", "8"], "--memory-gb from 8 to 4"),
    "query": ("flows.questions.open_for_questions", ["FOLDER", "y"], "give it more memory"),
}  # fmt: skip


@pytest.mark.parametrize("command", PLACES)
@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")], ids=repr)
def test_a_command_that_lacks_memory_says_what_to_lower(
    command: str,
    error: Exception,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, words, expected = PLACES[command]

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    paths = {"CONFIG": config, "FOLDER": str(Path(config).parent)}
    code, _, err = run(capsys, command, *(paths.get(word, word) for word in words))
    last = err.splitlines()[-1]
    assert code == 1 and last.startswith("lorif: error: this process ran out of memory") and expected in last
    assert "corpus" not in last.replace("corpus.max_length", "") and "Traceback" not in err


def test_a_config_that_is_gone_hides_no_lack_of_memory(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have been a pipe."""

    def fail(*_: Any) -> None:
        Path(config).unlink()
        raise MemoryError

    monkeypatch.setattr("lorif_core.lifecycle.plan.preflight", fail)
    code, _, err = run(capsys, "build", "-c", config)
    last = err.splitlines()[-1]
    assert code == 1 and last.startswith(
        "lorif: error: this process ran out of memory (MemoryError); give it more"
    )


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands it in a CONFIG; reading the corpus does."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        require_file("~/data.jsonl", "corpus")
    (tmp_path / "data.jsonl").touch()
    require_file("~/data.jsonl", "corpus")
