"""Invariant: `lorif check` runs its sample on a worker, and its process never loads weights."""

import json
from pathlib import Path

import pytest
import yaml

from lorif_core.model import loading
from tests.integration.lorif import run


def test_check_estimates_memory_and_time_without_weights_in_its_process(
    tmp_path: Path,
    model_folder: Path,
    corpus_file: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the process of the command loads weights")

    monkeypatch.setattr(loading, "load_full_model", refuse)  # a worker is another process
    config = {
        "index": str(tmp_path / "index"),
        "model": {"path": str(model_folder)},
        "corpus": {"uri": str(corpus_file), "id": "id", "max_length": 64},
        "compute": {"workers": 1, "tokens_per_batch": 2048},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    code, out, _ = run(capsys, "check", "-c", str(tmp_path / "config.yaml"), "--json")
    data = json.loads(out)
    assert code == 0 and data["bytes_per_example"] > 0
    assert set(data["memory"]) == {"calibration", "indexing", "query", "driver"}
    assert all(peak["estimate"] > 2**27 for peak in data["memory"].values())
    for stage in ("calibration", "indexing"):  # a tiny model, so that nearly all is the process itself
        peak = data["memory"][stage]
        assert peak["estimate"] == pytest.approx(peak["measured"], rel=0.25)
    assert all(seconds > 0 for seconds in data["seconds"].values())
    assert data["estimated_hours"] == pytest.approx(sum(data["seconds"].values()) / 3600)
    assert not any(path.is_dir() for path in tmp_path.glob("index/*.lance"))

    code, out, _ = run(capsys, "check", "-c", str(tmp_path / "config.yaml"))
    assert code == 0
    steps = {
        line.split()[0]: line
        for line in out.splitlines()
        if line.startswith(("calibration ", "roots ", "indexing ", "query "))
    }
    assert list(steps) == ["calibration", "roots", "indexing", "query"] and "peak memory, estimated" in out
    assert steps["calibration"].count("iB") == 2 and steps["roots"].count("iB") == 0
    *_, plan, following = out.splitlines()
    assert plan.startswith("1,100 examples with ") and plan.endswith("Nothing was built.")
    assert "less than a minute on one worker" in plan and "iB" in plan
    assert following == f"next: lorif build -c {tmp_path / 'config.yaml'}"
