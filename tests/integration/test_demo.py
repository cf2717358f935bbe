"""Invariant: the demo's report is made by the real pipeline, and every number in it comes from the run."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.demo_corpus import QUESTIONS


@pytest.mark.usefixtures("prefect_server", "ray_session")
@pytest.mark.parametrize("store", ["local", pytest.param("s3", marks=pytest.mark.chaos)])
def test_the_demo_tells_the_whole_story(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model trained for two seconds: the story is the same, the answers are worse."""
    import flows.demo

    monkeypatch.setattr(flows.demo, "_TRAINING_SECONDS", 2.0)
    out = tmp_path / "demo"
    summary = flows.demo.demo(out, store)
    assert json.loads((out / "summary.json").read_text()) == {k: v for k, v in summary.items() if k != "report"}
    assert summary["queries"] == len(QUESTIONS) >= 8
    assert {"index", "curvature", "train", "attribute"} <= set(summary["timings"])
    itself, topics = summary["self_check"]
    assert itself["ours"] >= 0.8 and itself["ours"] > 50 * itself["chance"]
    assert 0 < topics["chance"] < topics["bm25"] <= 1
    assert summary["dense_bytes_per_example"] > 10 * summary["bytes_per_example"] > 0
    page = (out / "report.html").read_text()
    for question in QUESTIONS:
        assert question.question_id in page
    sides = pq.read_table(out / "scores.parquet").column("side").to_pylist()
    assert (out / "index").exists() == (store == "local")
    assert sides.count("proponent") == sides.count("opponent") == 5 * len(QUESTIONS)
