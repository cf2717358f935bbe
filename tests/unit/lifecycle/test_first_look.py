"""Invariant: `lorif init` finds checkpoint and data, and its CONFIG is one that a build accepts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorif_core.config_file import load_config
from lorif_core.errors import UserError
from lorif_core.lifecycle.first_look import look
from lorif_core.lifecycle.plan import preflight
from tests.integration.lorif import run

TEXT = "the cat sees the dog"


@pytest.fixture
def project(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two checkpoints, data, and things that are neither."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/checkpoint-1", "model"):
        shutil.copytree(model_folder, tmp_path / "project" / name)
    root = tmp_path / "project"
    (root / ".git").mkdir()
    (root / ".git" / "large.jsonl").write_text('{"other": 1}\n' * 999)
    (root / "settings.json").write_text("{}")
    (root / "questions.jsonl").write_text('{"question": "why"}\n')
    (root / "data" / "deep").mkdir(parents=True)
    return root


def write(folder: Path, record: dict[str, Any], kind: str = "jsonl") -> None:
    records = [{**record, "id": f"s{n}"} for n in range(40)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), folder / "data" / "deep" / "a.parquet")
    else:
        (folder / "data" / "deep" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))


ROLES = {
    "text": ({"n": 1, "text": TEXT}, {"text": "text"}),
    "another name": ({"n": 1, "Story of it": TEXT}, {"text": "Story of it"}),
    "a pair": (
        {"Instruction": TEXT, "output": "yes", "text": "x"},
        {"prompt": "Instruction", "completion": "output"},
    ),
    "three columns": (
        {"instruction": TEXT, "input": "", "output": "yes"},
        {"prompt": ["instruction", "input"], "completion": "output"},
    ),
    "conversations": (
        {"prompt_id": 1, "chat": [{"role": "user", "content": "why"}, {"role": "assistant", "content": TEXT}]},
        {"messages": "chat"},
    ),
    "tokens": (
        {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1], "text": "x"},
        {"tokens": "input_ids", "mask": "attention_mask"},
    ),
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("case", ROLES)
def test_the_config_names_what_is_there(case: str, kind: str, project: Path) -> None:
    record, roles = ROLES[case]
    write(project, record, kind)
    found = look("project", None, None)
    assert (found.model, found.corpus, found.roles) == ("project/model", "project/data", {**roles, "id": "id"})
    path = project / "config.yaml"
    path.write_text(found.config_text())
    config = load_config(path)
    assert (config.model.path, config.corpus.uri) == ("project/model", "project/data")
    if case != "conversations":  # the tokenizer of the test has no chat template
        preflight(config)


def test_a_name_that_yaml_would_change_is_quoted(project: Path) -> None:
    write(project, {"null": TEXT})
    (project / "config.yaml").write_text(look("project", None, None).config_text())
    assert load_config(project / "config.yaml").corpus.text == "null"


def test_the_command_writes_a_new_file_and_names_the_next_command(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(project, {"text": TEXT})
    code, out, _ = run(capsys, "init", "project")
    written = Path("config.yaml").read_text()
    assert code == 0 and written in out and out.endswith("next: lorif check -c config.yaml\n")
    assert all(
        fact in written for fact in ("GPT2LMHeadModel", "text (text)", "20 tokens", "64 positions", "no GPU")
    )
    code, _, err = run(capsys, "init", "project")
    assert code == 2 and "config.yaml exists already" in err and Path("config.yaml").read_text() == written
    code, out, _ = run(capsys, "init", "project", "--model", "project/runs/checkpoint-1", "--out", "b", "--json")
    assert code == 0 and json.loads(out)["model"] == "project/runs/checkpoint-1"


def test_what_is_missing_is_named(project: Path) -> None:
    (project / "questions.jsonl").unlink()
    with pytest.raises(UserError, match=r"project has no training data .*; name them with --corpus"):
        look("project", None, None)
    (project / "data" / "deep" / "a.jsonl").write_text('{"n": 1.5}\n')
    with pytest.raises(UserError, match="has text, messages or token ids; its columns are n"):
        look("project", None, None)
    shutil.rmtree(project / "model")
    shutil.rmtree(project / "runs")
    with pytest.raises(UserError, match=r"project has no checkpoint.*--model"):
        look("project", None, None)
