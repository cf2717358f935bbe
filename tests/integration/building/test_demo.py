"""Invariant: the real pipeline makes the demo's report, and every number in it comes from the run."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import lorif_core as lc
from lorif_core.config_file import load_config
from tasks.demo.corpus import QUESTIONS, Question
from tasks.demo.counterfactual import PASSAGES

# a model of one epoch only loops, so these take the place of its own answers
OWN = [
    Question("own-1", "The statement is ", "executed when the loop ends.", is_own=True),
    Question("own-2", "Return the ", "name of the file.", is_own=True),
]
ASKED = [*OWN, *QUESTIONS]
STAGES = {
    "record: metric", "record: rows", "start", "calibrate", "drift", "index", "curvature", "plan, publish", "all",
}  # fmt: skip


@pytest.mark.usefixtures("prefect_server", "ray_session")
@pytest.mark.parametrize("store", ["local", pytest.param("s3", marks=pytest.mark.chaos)])
def test_the_demo_runs_all_steps(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model trains for one epoch: the steps are the demo's, the answers worse."""
    import flows.demo

    monkeypatch.setattr(flows.demo, "_TRAINING_EPOCHS", 1)
    monkeypatch.setattr(flows.demo, "choose_questions", lambda model, corpus: ASKED)
    out = tmp_path / "demo"
    summary = flows.demo.demo(out, store)
    assert json.loads((out / "summary.json").read_text()) == {k: v for k, v in summary.items() if k != "report"}
    assert summary["queries"] == len(ASKED)
    assert {"index", "curvature", "train", "train further", "attribute", "train again"} <= set(summary["timings"])
    check_trainings(summary["counterfactual"], summary["change"]["rows"]["before"])
    assert summary["dense_bytes_per_example"] > 10 * summary["bytes_per_example"] > 0
    page = (out / "report.html").read_text()
    for question in ASKED:
        assert question.question_id in page
    assert page.count("The model&#39;s own answer. ") == len(OWN) and page.count("Typed by us.") == len(QUESTIONS)
    assert "The last line leaves nothing out" in page and "come from the backward passes of its steps" in page
    answers = pq.read_table(out / "scores.parquet").to_pylist()
    assert (out / "index").exists() == (store == "local")
    sides = [row["side"] for row in answers]
    assert sides.count("proponent") == sides.count("opponent") == 5 * len(ASKED)
    check_change(summary["change"], summary, answers, out)
    assert "What changed since generation 1" in page
    if store == "local":
        check_former_ranks(summary["change"], out)


def check_trainings(test: dict[str, Any], rows: int) -> None:
    """Each method left out its passages of both own answers, and their losses were measured."""
    assert test["queries"] == [question.question_id for question in OWN] and test["rows"] == rows
    *methods, noise = test["removals"]
    assert len(methods) == 3 and test["k"] == PASSAGES and noise["passages"] == 0
    for removal in methods:
        assert PASSAGES <= removal["passages"] <= PASSAGES * len(OWN)
    for removal in test["removals"]:
        assert removal["low"] <= removal["mean"] <= removal["high"]
        assert removal["mean"] == pytest.approx(sum(removal["rises"]) / len(OWN))
        assert any(rise != 0 for rise in removal["rises"])


def check_change(
    change: dict[str, Any], summary: dict[str, Any], answers: list[dict[str, Any]], out: Path
) -> None:
    """The summary of changes agrees with the corpus files, with the answers, and with itself."""
    counts = [len(path.read_text().splitlines()) for path in sorted((out / "corpus").iterdir())]
    rows, recorded = change["rows"], change["recorded"]
    assert summary["generation"] == 3 > recorded["generation"] > change["former_generation"] == 1
    assert rows["before"] == sum(counts) - rows["added"] and rows["added"] in counts, "the added file"
    assert rows["after"] == summary["rows"] == recorded["rows"] == sum(counts), "all rows were recorded"
    assert 1 < recorded["first_step"] < recorded["last_step"]
    assert change["bytes"]["after"] > change["bytes"]["before"] > 0
    (older,) = change["older_rows"]
    assert older["rows"] == rows["after"] > older["sampled"] > 100
    assert 0.9 < older["cosine"] < 1 and older["checkpoint"].startswith("recorded:")
    assert older["decision"] == "follows" and rows["refreshed"] == 0
    for seconds in (change["update_seconds"], change["rebuild_seconds_estimated"]):
        assert set(seconds) == STAGES and seconds["all"] == pytest.approx(sum(seconds.values()) / 2)
    reported = [(query["query_id"], hit["rank"], hit["example_id"]) for query in change["queries"]
                for hit in query["proponents"]]  # fmt: skip
    stored = [(row["query_id"], row["rank"], row["example_id"]) for row in answers if row["side"] == "proponent"]
    assert reported == stored and sum(change["proponents"].values()) == len(stored)


def check_former_ranks(change: dict[str, Any], out: Path) -> None:
    """The first generation can still be searched, and its ranks are those that the summary reports."""
    config = load_config(str(out / "config.json"), [])
    assert config.model.path == str(out / "model-continued")
    index = lc.open_index(config.index)
    first = lc.Index(index.store, index.generations()[0])
    questions = [{"prompt": question.prompt, "completion": question.completion} for question in ASKED]
    rankings = first.top_k(questions, change["rows"]["before"])
    for query, top in zip(change["queries"], rankings, strict=True):
        ranks = {hit.example_id: rank for rank, hit in enumerate(top.proponents, start=1)}
        assert len(ranks) == change["rows"]["before"]
        for hit in query["proponents"]:
            reported, rank = hit["former_rank"], ranks.get(hit["example_id"])
            assert (reported is None) == (rank is None)
            assert reported is None or abs(reported - rank) <= 1, "ranks may differ by 1 because of ties"
