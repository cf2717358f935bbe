"""Invariants of `lorif evaluate lds`: the truth is trained once per run, resumes, and is never that of another
recipe; what is measured comes out of the product's own indexes.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.evaluation import load_evaluation
from lorif_core.truth import WHOLE, Trainer, TruthFolder, run_once, runs
from tests.conftest import WORDS
from tests.integration.test_bad_input import run

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")

EXAMPLES, SUBSETS = 40, 6


@pytest.fixture(scope="module")
def testbed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """EVALUATION over forty short texts and four queries."""
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
            "compute": {"workers": 2, "tokens_per_batch": 1024},
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


def written(raw: dict[str, Any], folder: Path) -> str:
    path = folder / "evaluation.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def test_the_whole_evaluation_and_again(
    testbed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = written(testbed, tmp_path), tmp_path / "out"
    evaluation = load_evaluation(path)
    trainer, folder = Trainer(evaluation), TruthFolder(str(out), StorageConfig())
    run_once(trainer, folder, "00003-1", evaluation.base())  # what an earlier, killed run has left
    early, kept = folder.done(), folder._losses("00003-1")
    code, printed, err = run(capsys, "evaluate", "lds", "-c", path, "--out", str(out), "--json")
    assert code == 0, err[-2000:]
    summary = json.loads(printed.splitlines()[-1])
    assert early == {"00003-1"} and folder.done() == {*runs(evaluation), "truth"}
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
    assert folder._losses("00003-1") == kept, "what is there is not trained again"
    again = np.mean([trainer.losses(3, seed) for seed in range(2)], axis=0)
    np.testing.assert_allclose(truth.losses[3], again, rtol=0.05)  # threads round sums in any order
    whole = folder._losses(WHOLE)
    assert np.mean(whole) < np.mean(truth.losses), "twice the data, a lower loss"

    other = {**testbed, "training": {**testbed["training"], "epochs": 3}}
    code, _, err = run(capsys, "evaluate", "lds", "-c", written(other, tmp_path), "--out", str(out))
    assert code == 2 and "ground truth of another recipe" in err


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"methods": {}}, "names no methods"),
        ({"methods": {"a": {"code": {"rank": 0}}}}, "methods.a: code.rank"),
        ({"methods": {"a/b": {}}}, "without a slash"),
        ({"compare": [["dot", "nobody"]]}, "'nobody'"),
        ({"subsets": {"share": 1.0}}, "subsets.share"),
        ({"trainng": {}}, "did you mean 'training'"),
    ],
    ids=str,
)
def test_a_bad_evaluation_is_refused(
    keys: dict[str, Any], told: str, testbed: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load_evaluation(written({**testbed, **keys}, tmp_path))
    assert told in str(caught.value)
