"""Invariant: a batch attribution that is killed and run again ends with the scores of an undisturbed one.

Answered blocks are not computed again; all blocks use the generation that the first run selected.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from prefect.settings import PREFECT_API_URL

from lorif_core.config import Config, StorageConfig
from lorif_core.errors import UserError
from lorif_core.report import batch_outputs
from lorif_core.report.batch_outputs import write_answers
from lorif_core.report.batch_run import BatchRun, QueryBlock
from lorif_core.report.block_answers import Attribution
from lorif_core.search.explanation import QUERIES_EXPLAINED
from lorif_core.search.index import Index
from lorif_core.storage.lease import current_holder
from lorif_core.storage.objects import Objects
from lorif_core.tables.generation import now
from lorif_core.tables.store import Store
from tasks.attribute import check_attribution
from tasks.demo.object_store import MotoServer
from tests.integration.lorif import LORIF, run
from tests.integration.s3 import BUCKET
from tests.patience import patience

QUERIES = 60
K = 3


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("queries") / "q.jsonl"
    things = ["cat", "dog", "bird", "tree"]
    lines = [{"id": f"q{i}", "text": f"the {things[i % 4]} sees {i} {things[i // 4 % 4]}"} for i in range(QUERIES)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def small_blocks(built: Config) -> Config:
    """A CONFIG with so little memory that a block has three queries."""
    return built.model_copy(update={"compute": built.compute.model_copy(update={"memory_gb": 1.5e-4})})


def answer(config: Config, run: BatchRun, blocks: list[QueryBlock]) -> None:
    """Answer blocks of queries in this process, as workers do."""
    index = Index(Store(config.index, config.storage), run.generation)
    for block in blocks:
        gradients = index.encode(block.queries, config.model)
        tops = index.top_k_folded(index.fold(gradients, run.options), run.k, run.options)
        run.save_answers(block, list(map(Attribution, block.queries, gradients[-1].losses.tolist(), tops)))


def wait_for_answers(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + patience(120)
    while time.monotonic() < deadline and process.poll() is None:
        if any((out / "_lorif" / "answered").glob("[!.]*.parquet")):
            return
        time.sleep(0.01)
    pytest.fail(f"the attribution stored no answers: {process.communicate()[1][-2000:]}")


def test_a_killed_attribution_ends_with_the_same_scores(
    small_blocks: Config, queries: str, tmp_path: Path
) -> None:
    from flows.attribute import attribute

    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(small_blocks.model_dump(exclude_unset=True)))
    process = subprocess.Popen(
        [*LORIF, "attribute", "-c", str(path), "--queries", queries, "--out", str(out), "--top-k", str(K)],
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for_answers(out, process)
    holder = current_holder(Objects(str(out), small_blocks.storage))
    assert holder is not None and holder.pid == process.pid, "the lease must lock out a second run"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    answered = list((out / "_lorif" / "answered").glob("[!.]*.parquet"))
    assert 0 < len(answered) < QUERIES // 3, "the kill must fall between two blocks"
    assert not (out / "scores.parquet").exists()
    resumed = check_attribution(small_blocks, queries, str(out), K)
    assert len(resumed.unanswered_blocks()) == QUERIES // 3 - len(answered)

    attribute(small_blocks, queries, str(out), K)
    attribute(small_blocks, queries, str(tmp_path / "undisturbed"), K)
    assert (out / "scores.parquet").read_bytes() == (tmp_path / "undisturbed" / "scores.parquet").read_bytes()
    assert sorted(file.name for file in out.iterdir()) == ["report.html", "scores.parquet", "summary.json"]
    pages = [(folder / "report.html").read_text() for folder in (out, tmp_path / "undisturbed")]
    resumed_page, undisturbed_page = (
        page.partition('<section class="query"')[2].partition('<section class="more"')[0] for page in pages
    )
    assert resumed_page == undisturbed_page
    assert resumed_page.count('class="shaded"') == QUERIES_EXPLAINED


def test_two_workers_give_the_results_of_one_worker(small_blocks: Config, queries: str, tmp_path: Path) -> None:
    """Scores may differ by rounding, since a single worker uses both cores."""
    from flows.attribute import attribute

    for workers in (1, 2):
        compute = small_blocks.compute.model_copy(update={"workers": workers, "memory_gb": 1.0})
        attribute(small_blocks.model_copy(update={"compute": compute}), queries, str(tmp_path / str(workers)), K)
    single, double = (pq.read_table(tmp_path / workers / "scores.parquet") for workers in "12")
    assert single.drop_columns("score") == double.drop_columns("score")
    np.testing.assert_allclose(single["score"].to_numpy(), double["score"].to_numpy(), rtol=1e-5)


@pytest.fixture
def copied(small_blocks: Config, tmp_path: Path) -> Config:
    """A CONFIG of a copied index of one generation, which the test may change."""
    shutil.copytree(small_blocks.index, tmp_path / "index")
    return small_blocks.model_copy(update={"index": str(tmp_path / "index")})


def test_the_generation_is_selected_once(
    copied: Config, queries: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If another generation is published meanwhile, all answers remain those of the first one."""
    out = str(tmp_path / "out")
    first = check_attribution(copied, queries, out, K)
    first.begin()
    answer(copied, first, first.blocks[:2])
    store = Store(copied.index)
    newer = store.publish(replace(first.generation, generation=2, created_at=now()))
    again = check_attribution(copied, queries, out, K)
    again.begin()
    assert store.latest() == newer
    assert again.generation == first.generation
    assert again.unanswered_blocks() == again.blocks[2:]
    other = check_attribution(copied, queries, str(tmp_path / "other"), K)
    assert other.generation.generation == 2
    assert not {block.object_name for block in other.blocks} & {block.object_name for block in first.blocks}
    assert run(capsys, "gc", copied.index, "--apply", "--keep", "1")[0] == 0
    with pytest.raises(UserError, match=r"uses generation 1 of .* which is not in .* never mixed"):
        check_attribution(copied, queries, out, K)


def test_a_folder_resumes_only_its_own_attribution(small_blocks: Config, queries: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = check_attribution(small_blocks, queries, str(out), K, "tokens < 40")
    assert not out.exists(), "the check must not write anything"
    first.begin()
    assert check_attribution(small_blocks, queries, str(out), K, "tokens < 40").generation == first.generation
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(Path(queries).read_text().splitlines(keepends=True)[1:]))
    others = {
        "queries": (str(fewer), K, "tokens < 40", "none"),
        "k": (queries, K + 1, "tokens < 40", "none"),
        "where": (queries, K, None, "none"),
        "normalise": (queries, K, "tokens < 40", "cosine"),
    }
    for file, k, where, normalise in others.values():
        with pytest.raises(UserError, match="is not empty: it has an unfinished attribution of other queries"):
            check_attribution(small_blocks, file, str(out), k, where, normalise)
    first.release_if_unanswered()
    assert not out.exists(), "a folder without answers must be released"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty; name a new or empty folder"):
        check_attribution(small_blocks, queries, str(out), K)


def test_two_attributions_cannot_start_in_the_same_folder(
    small_blocks: Config, queries: str, tmp_path: Path
) -> None:
    """The second fails, since it would write into the folder of the first."""
    first, second = (check_attribution(small_blocks, queries, str(tmp_path / "out"), k) for k in (K, K + 1))
    first.begin()
    with pytest.raises(UserError, match="another attribution has just started"):
        second.begin()


@pytest.fixture
def small_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(batch_outputs, "QUERIES_IN_REPORT", 4)
    monkeypatch.setattr(batch_outputs, "HITS_IN_REPORT", 2)
    monkeypatch.setattr(batch_outputs, "_HITS_PER_LOOKUP", 100)
    monkeypatch.setattr(batch_outputs, "_HITS_PER_WRITE", 40)
    yield


def test_an_object_store_stores_blocks_and_a_long_page_is_truncated(
    small_blocks: Config, queries: str, s3_server: MotoServer, tmp_path: Path, small_page: None
) -> None:
    """The folder ends with three files; the table is that of a local run; the page says what it omits."""
    config = small_blocks.model_copy(
        update={"storage": StorageConfig(endpoint=s3_server.url, region="us-east-1", allow_http=True)}
    )
    out = f"s3://{BUCKET}/answers/resumed"
    run = check_attribution(config, queries, out, K)
    run.begin()
    answer(config, run, run.blocks[:1])
    run = check_attribution(config, queries, out, K)
    assert len(run.unanswered_blocks()) == len(run.blocks) - 1
    answer(config, run, run.unanswered_blocks())
    store = Store(config.index, config.storage)
    write_answers(out, store, run.generation, run.answers(), "Answers")
    again = check_attribution(config, queries, out, K)
    assert again.unanswered_blocks() == [] and again.summary()["queries"] == QUERIES
    again.clean_up()
    listed = s3_server.client().list_objects_v2(Bucket=BUCKET, Prefix="answers/resumed/")["Contents"]
    assert sorted(item["Key"].rsplit("/", 1)[1] for item in listed) == [
        "report.html", "scores.parquet", "summary.json",
    ]  # fmt: skip
    for name in ("report.html", "scores.parquet"):
        s3_server.client().download_file(BUCKET, f"answers/resumed/{name}", str(tmp_path / name))
    page = (tmp_path / "report.html").read_text()
    assert (
        f"the first 4 of {QUERIES} queries and the first 2 examples of each side; scores.parquet has all" in page
    )
    assert page.count('<section class="query"') == 4
    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [row["query_id"] for row in rows] == [f"q{i}" for i in range(QUERIES) for _ in range(2 * K)]
    expected = Index(store).top_k([query.text or "" for query in run.queries], K)
    assert [row["example_id"] for row in rows] == [
        hit.example_id for top in expected for hit in (*top.proponents, *top.opponents)
    ]
    texts = store.rows.details(run.generation.factors_version, [rows[0]["example_id"]])
    assert rows[0]["text"] == texts[rows[0]["example_id"]].get("text")
