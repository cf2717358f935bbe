"""Invariants of `lorif evaluate`: every ground-truth run is trained once, a killed evaluation resumes, and another
recipe is rejected; planted sources are retrieved, and a step on proponents makes their query more likely.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prefect.logging import disable_run_logger

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.evaluation.config import load_evaluation
from lorif_core.evaluation.ground_truth import FULL_RUN, Trainer, TruthFolder, run_names, run_once
from tasks.evaluate.shared import make_checkpoint
from tasks.evaluate.tail_patch import patch_queries, score_random
from tests.conftest import WORDS
from tests.integration.lorif import run

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")

EXAMPLES, SUBSETS = 40, 6


@pytest.fixture(scope="module")
def testbed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """EVALUATION with forty short texts and four queries."""
    folder = tmp_path_factory.mktemp("testbed")
    rng = np.random.default_rng(0)
    for name, count in (("corpus", EXAMPLES), ("queries", 4)):
        rows = [{"id": f"{name[0]}{i}", "text": " ".join(rng.choice(WORDS, 6))} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "config": {
            "model": {"path": str(model_folder)},
            "corpus": {"uri": str(folder / "corpus.jsonl"), "id": "id", "max_length": 48},
            "projection": {"kind": "random", "factor": 4},
            "compute": {"workers": 1, "tokens_per_batch": 1024},
        },
        "queries": str(folder / "queries.jsonl"),
        "training": {"epochs": 2, "batch": 8, "learning_rate": 0.01},
        "subsets": {"count": SUBSETS, "seeds": 2},
        "methods": {
            "dot": {"code": {"kind": "dense"}, "curvature": {"kind": "none"}},
            "small": {"preset": "compact"},
        },
        "compare": [["small", "dot"]],
    }


def write_evaluation(raw: dict[str, Any], folder: Path) -> str:
    path = folder / "evaluation.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def test_lds_resumes_and_rejects_another_recipe(
    testbed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_evaluation(testbed, tmp_path), tmp_path / "out"
    evaluation = load_evaluation(path)
    trainer, folder = Trainer(evaluation), TruthFolder(str(out), StorageConfig())
    run_once(trainer, folder, "00003-1", evaluation.base())  # as a killed run leaves it
    finished, stored = folder.finished_runs(), folder._losses("00003-1")
    code, printed, err = run(capsys, "evaluate", "lds", "-c", path, "--out", str(out), "--json")
    assert code == 0, err[-2000:]
    summary = json.loads(printed.splitlines()[-1])
    assert finished == {"00003-1"} and folder.finished_runs() == {*run_names(evaluation), "truth"}
    assert (summary["subsets"], summary["seeds"], summary["queries"], summary["examples"]) == (
        SUBSETS,
        2,
        4,
        EXAMPLES,
    )
    assert [row["method"] for row in summary["methods"]] == ["dot", "small", "BM25"]
    dot, small, bm25 = summary["methods"]
    assert dot["bytes_per_example"] > 5 * small["bytes_per_example"] > 0 and bm25["bytes_per_example"] is None
    assert all(row["low"] <= row["lds"] <= row["high"] for row in summary["methods"])
    assert summary["differences"][0]["difference"] == pytest.approx(small["lds"] - dot["lds"], abs=2e-4)
    with (out / "lds.csv").open() as table:
        assert [row["method"] for row in csv.DictReader(table)] == ["dot", "small", "BM25"]
    assert (out / "lds.svg").read_text().lstrip().startswith("<?xml")

    _, truth = folder.read(evaluation)
    assert truth.members.sum(axis=1).tolist() == [EXAMPLES // 2] * SUBSETS
    assert folder._losses("00003-1") == stored, "a finished run must not be trained again"
    again = np.mean([trainer.losses(3, seed) for seed in range(2)], axis=0)
    np.testing.assert_allclose(truth.losses[3], again, rtol=0.05)  # threads add in any order, so rounding differs
    losses = folder._losses(FULL_RUN)
    assert np.mean(losses) < np.mean(truth.losses), "twice the data must give a lower loss"

    other = {**testbed, "training": {**testbed["training"], "epochs": 3}}
    code, _, err = run(capsys, "evaluate", "lds", "-c", write_evaluation(other, tmp_path), "--out", str(out))
    assert code == 2 and "ground truth of another recipe" in err


def evaluate(
    measure: str, raw: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """Run a measure with the output in `folder`/out; returns its summary."""
    path, out = write_evaluation(raw, folder), str(folder / "out")
    code, printed, err = run(capsys, "evaluate", measure, "-c", path, "--out", out, "--json")
    assert code == 0, err[-2000:]
    return json.loads(printed.splitlines()[-1])


ODD = ["7 19 64 350 8 2026 51", "QUARTZ JUMP FJORD LYNX VEX", "(x) => {y}; [z] + /w/", "éàü ñøß æþð ÿĉ"]


def with_odd_queries(testbed: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Replace the queries by texts with characters of their own. Among similar or memorised texts, the plain dot
    product would rank those with the largest gradients first for every query.
    """
    queries = folder / "queries.jsonl"
    queries.write_text("".join(json.dumps({"text": text}) + "\n" for text in ODD))
    training = {**testbed["training"], "learning_rate": 0.003}
    return {**testbed, "queries": str(queries), "training": training}


def values(summary: dict[str, Any], **labels: str) -> dict[str, float]:
    """The value of one metric by method."""
    rows = [row for row in summary["methods"] if all(row[key] == value for key, value in labels.items())]
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    return {row["method"]: row["value"] for row in rows}


def test_planted_sources_are_retrieved_and_a_second_run_reuses_all_work(
    testbed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"text": "a red bird runs", "source": "then the bird sees a small cat"}\n')
    recall = {"edits": [0.0, 0.3], "pairs": str(pairs), "cutoffs": [1, 10]}
    raw = {**with_odd_queries(testbed, tmp_path), "recall": recall}
    summary = evaluate("recall", raw, tmp_path, capsys)
    assert (summary["queries"], summary["examples"], summary["sources"]) == (5, EXAMPLES + 4 * 2 + 1, 9)
    copies = values(summary, kind="copy", measure="recall@1")
    assert copies == {"dot": 1.0, "small": copies["small"], "BM25": 0.75}, "BM25 finds no words in punctuation"
    assert values(summary, kind="copy", measure="recall@10")["small"] > 0.5
    assert values(summary, kind="0.3 edited", measure="mrr")["dot"] > 0.25
    assert set(values(summary, kind="paraphrase", measure="mrr")) == {"dot", "small", "BM25"}
    dot, small = (values(summary, kind="copy", measure="mrr")[name] for name in ("dot", "small"))
    difference = next(row for row in summary["differences"] if (row["kind"], row["measure"]) == ("copy", "mrr"))
    assert difference["difference"] == pytest.approx(small - dot, abs=1e-5)
    sizes = {row["method"]: row["bytes_per_example"] for row in summary["methods"]}
    assert sizes["dot"] > 5 * sizes["small"] > 0 and sizes["BM25"] is None
    out = tmp_path / "out"
    with (out / "recall.csv").open() as table:
        assert len(list(csv.DictReader(table))) == 3 * 3 * 3
    with (out / "recall-search.csv").open() as table:
        assert [row["method"] for row in csv.DictReader(table)] == [row["method"] for row in summary["search"]]
    assert all(0 <= row[side] <= 1 for row in summary["search"] for side in ("proponents", "opponents"))
    (two_stage,) = (row for row in summary["search"] if row["search"] == "two-stage")
    assert (two_stage["method"], two_stage["top_k"]) == ("small", 10), (
        "dense codes have no two-stage search, and 49 rows have no first 100"
    )
    assert two_stage["bytes_read"] > 1 and two_stage["proponents"] > 0.9, "all of so few rows are candidates"

    before = files(out / "planted")
    again = evaluate("recall", raw, tmp_path, capsys)
    assert [row["value"] for row in again["methods"]] == [row["value"] for row in summary["methods"]]
    assert files(out / "planted") == before, "nothing may be planted, trained or indexed again"
    other = {**raw, "recall": {**recall, "edits": [0.0]}}
    code, _, err = run(capsys, "evaluate", "recall", "-c", write_evaluation(other, tmp_path), "--out", str(out))
    assert code == 2 and "planted corpus of another edits" in err


def files(folder: Path) -> dict[str, int]:
    """Modification times of all files except leases and receipts, which every build writes."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not {"lease", "runs"} & {*path.parts})
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def test_a_step_on_proponents_makes_their_query_more_likely_and_a_second_run_reuses_all_work(
    testbed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    related = [{"id": f"odd{i}", "text": " ".join(reversed(text.split()))} for i, text in enumerate(ODD * 2)]
    corpus.write_text(
        Path(testbed["config"]["corpus"]["uri"]).read_text() + "".join(json.dumps(row) + "\n" for row in related)
    )
    config = {**testbed["config"], "corpus": {**testbed["config"]["corpus"], "uri": str(corpus)}}
    raw = {**with_odd_queries(testbed, tmp_path), "config": config, "compare": [["dot", "random"]]}
    raw |= {"methods": {"dot": testbed["methods"]["dot"]}, "tail_patch": {"top_k": 2, "learning_rate": 0.001}}
    examples = EXAMPLES + len(related)
    evaluation, out = load_evaluation(write_evaluation(raw, tmp_path)), tmp_path / "out"
    summary = evaluate("tail-patch", raw, tmp_path, capsys)
    gains = values(summary, measure="log-probability")
    assert set(gains) == {"dot", "BM25", "random"}
    assert gains["dot"] > max(0.0, gains["random"])
    assert values(summary, measure="log-probability per token")["dot"] == pytest.approx(gains["dot"] / 25, rel=0.5)
    difference = summary["differences"][0]
    assert (difference["first"], difference["second"]) == ("dot", "random") and difference["low"] > 0
    with (out / "tail-patch.csv").open() as table:
        assert len(list(csv.DictReader(table))) == 3 * 2

    before = {name: files(out / name) for name in ("model", "_lorif/tail-patch")}
    random_scores = [score_random((len(ODD), examples))]
    longer = load_evaluation(
        write_evaluation({**raw, "tail_patch": {"top_k": 2, "learning_rate": 0.002}}, tmp_path)
    )
    with disable_run_logger():
        assert len(make_checkpoint.fn(evaluation, str(out))) == examples
        again = patch_queries.fn(evaluation, str(out), random_scores)
        assert {name: files(out / name) for name in before} == before, "nothing may be trained or patched again"
        assert np.mean(again["random"]) == pytest.approx(gains["random"], rel=1e-4)
        doubled = patch_queries.fn(longer, str(out), random_scores)
        with pytest.raises(UserError, match=f"has {examples} examples, fewer than the required {examples + 1}"):
            make_checkpoint.fn(evaluation, str(out), at_least=examples + 1)
    assert doubled["random"] == pytest.approx(np.multiply(2, again["random"]), rel=0.1), (
        "a changed step must be computed again"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"methods": {}}, "names no methods"),
        ({"methods": {"a": {"code": {"rank": 0}}}}, "methods.a: code.rank"),
        ({"methods": {"a/b": {}}}, "without a slash"),
        ({"compare": [["dot", "nobody"]]}, "'nobody'"),
        ({"subsets": {"share": 1.0}}, "subsets.share"),
        ({"trainng": {}}, "did you mean 'training'"),
        ({"methods": {"random": {}}}, "'random' cannot be the name"),
        ({"methods": {"..": {}}}, "leading dot"),
        ({"recall": {"edits": [1.5]}}, "recall.edits = 1.5"),
        ({"recall": {"edits": []}}, "recall: there is nothing to plant"),
        ({"recall": {"cutoffs": [10, 10]}}, "recall: cutoffs has a value twice"),
        ({"recall": {"pair": "x"}}, "did you mean 'recall.pairs'"),
        ({"tail_patch": {"learning_rate": 0}}, "tail_patch.learning_rate"),
        ({"tail_patch": {"optimizer": "adam"}}, "tail_patch.optimizer"),
    ],
    ids=str,
)
def test_an_invalid_evaluation_raises(
    keys: dict[str, Any], message: str, testbed: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load_evaluation(write_evaluation({**testbed, **keys}, tmp_path))
    assert message in str(caught.value)
