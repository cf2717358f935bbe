"""Invariant: a batch attribution that was killed, and is run again, ends with the scores of one never disturbed.

Blocks that are answered are not asked again; all are of the generation that the first run has chosen.
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
from lorif_core.report import batch_outputs as answers
from lorif_core.report.batch_outputs import write_answers
from lorif_core.report.batch_run import QueryBlock, Unfinished
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
def asked(built: Config) -> Config:
    """So little memory that three queries make a block."""
    return built.model_copy(update={"compute": built.compute.model_copy(update={"memory_gb": 6e-5})})


def answer(config: Config, run: Unfinished, blocks: list[QueryBlock]) -> None:
    """On this machine, as workers would."""
    index = Index(Store(config.index, config.storage), run.generation)
    for block in blocks:
        gradients = index.encode(block.queries, config.model)
        found = index.top_k_folded(index.fold(gradients, run.terms), run.k, run.terms)
        run.keep(block, list(map(Attribution, block.queries, gradients[-1].losses.tolist(), found)))


def wait_for_answers(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any((out / "_lorif" / "answered").glob("[!.]*.parquet")):
            return
        time.sleep(0.01)
    pytest.fail(f"the attribution kept nothing: {process.communicate()[1][-2000:]}")


def test_a_killed_attribution_ends_with_the_same_scores(asked: Config, queries: str, tmp_path: Path) -> None:
    from flows.attribute import attribute

    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(asked.model_dump(exclude_unset=True)))
    process = subprocess.Popen(
        [*LORIF, "attribute", "-c", str(path), "--queries", queries, "--out", str(out), "--top-k", str(K)],
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for_answers(out, process)
    holder = current_holder(Objects(str(out), asked.storage))
    assert holder is not None and holder.pid == process.pid, "a second run of it is kept out"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {file: file.stat().st_mtime_ns for file in (out / "_lorif" / "answered").glob("[!.]*.parquet")}
    assert 0 < len(kept) < QUERIES // 3, "the kill must fall between two blocks"
    assert not (out / "scores.parquet").exists()
    begun = check_attribution(asked, queries, str(out), K)
    assert len(begun.missing()) == QUERIES // 3 - len(kept)

    attribute(asked, queries, str(out), K)
    attribute(asked, queries, str(tmp_path / "undisturbed"), K)
    assert (out / "scores.parquet").read_bytes() == (tmp_path / "undisturbed" / "scores.parquet").read_bytes()
    assert sorted(file.name for file in out.iterdir()) == ["report.html", "scores.parquet", "summary.json"]
    one, other = (
        (folder / "report.html").read_text().partition('<section class="query"')[2].partition('id="layers"')[0]
        for folder in (out, tmp_path / "undisturbed")
    )
    assert one == other and one.count('class="shaded"') == QUERIES_EXPLAINED


def test_two_workers_find_what_one_finds(asked: Config, queries: str, tmp_path: Path) -> None:
    """Whichever scans a fragment, and whichever ends first; one alone has both cores, which round otherwise."""
    from flows.attribute import attribute

    for workers in (1, 2):
        compute = asked.compute.model_copy(update={"workers": workers, "memory_gb": 1.0})
        attribute(asked.model_copy(update={"compute": compute}), queries, str(tmp_path / str(workers)), K)
    one, two = (pq.read_table(tmp_path / workers / "scores.parquet") for workers in "12")
    assert one.drop_columns("score") == two.drop_columns("score")
    np.testing.assert_allclose(one["score"].to_numpy(), two["score"].to_numpy(), rtol=1e-5)


@pytest.fixture
def grown(asked: Config, tmp_path: Path) -> Config:
    """An index of one generation that the test may change."""
    shutil.copytree(asked.index, tmp_path / "index")
    return asked.model_copy(update={"index": str(tmp_path / "index")})


def test_the_generation_is_chosen_once(
    grown: Config, queries: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another is published meanwhile: the answers are still of the first, and none is ever of both."""
    out = str(tmp_path / "out")
    first = check_attribution(grown, queries, out, K)
    first.begin()
    answer(grown, first, first.blocks[:2])
    store = Store(grown.index)
    newer = store.publish(replace(first.generation, generation=2, created_at=now()))
    again = check_attribution(grown, queries, out, K)
    again.begin()
    assert store.latest() == newer
    assert again.generation == first.generation
    assert again.missing() == again.blocks[2:]
    other = check_attribution(grown, queries, str(tmp_path / "other"), K)
    assert other.generation.generation == 2
    assert not {block.part for block in other.blocks} & {block.part for block in first.blocks}
    assert run(capsys, "gc", grown.index, "--apply", "--keep", "1")[0] == 0
    with pytest.raises(UserError, match=r"begun on generation 1 of .* does not have \(any more\).* never mixed"):
        check_attribution(grown, queries, out, K)


def test_a_folder_goes_on_with_its_own_question_only(asked: Config, queries: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begun = check_attribution(asked, queries, str(out), K, "tokens < 40")
    assert not out.exists(), "nothing is written before work begins"
    begun.begin()
    assert check_attribution(asked, queries, str(out), K, "tokens < 40").generation == begun.generation
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(Path(queries).read_text().splitlines(keepends=True)[1:]))
    others = {
        "queries": (str(fewer), K, "tokens < 40", "none"),
        "k": (queries, K + 1, "tokens < 40", "none"),
        "where": (queries, K, None, "none"),
        "normalise": (queries, K, "tokens < 40", "cosine"),
    }
    for file, k, where, normalise in others.values():
        with pytest.raises(UserError, match="is not empty: an attribution of other queries"):
            check_attribution(asked, file, str(out), k, where, normalise)
    begun.leave()
    assert not out.exists(), "a folder without answers is free again"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty; name a folder"):
        check_attribution(asked, queries, str(out), K)


def test_two_that_begin_at_once(asked: Config, queries: str, tmp_path: Path) -> None:
    """The second is told; it would write into the first's folder."""
    one, other = (check_attribution(asked, queries, str(tmp_path / "out"), k) for k in (K, K + 1))
    one.begin()
    with pytest.raises(UserError, match="another attribution has just begun"):
        other.begin()


@pytest.fixture
def small_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(answers, "QUERIES_IN_REPORT", 4)
    monkeypatch.setattr(answers, "HITS_IN_REPORT", 2)
    monkeypatch.setattr(answers, "_HITS_PER_LOOKUP", 100)
    monkeypatch.setattr(answers, "_HITS_PER_WRITE", 40)
    yield


def test_an_object_store_keeps_blocks_and_a_long_page_is_cut(
    asked: Config, queries: str, s3_place: MotoServer, tmp_path: Path, small_page: None
) -> None:
    """The folder has the three files at the end; the table is that of a local one, the page says what it lacks."""
    config = asked.model_copy(
        update={"storage": StorageConfig(endpoint=s3_place.url, region="us-east-1", allow_http=True)}
    )
    out = f"s3://{BUCKET}/answers/resumed"
    run = check_attribution(config, queries, out, K)
    run.begin()
    answer(config, run, run.blocks[:1])
    run = check_attribution(config, queries, out, K)
    assert len(run.missing()) == len(run.blocks) - 1
    answer(config, run, run.missing())
    store = Store(config.index, config.storage)
    write_answers(out, store, run.generation, run.answers(), "Answers")
    again = check_attribution(config, queries, out, K)
    assert again.missing() == [] and again.summary()["queries"] == QUERIES
    again.finish()
    listed = s3_place.client().list_objects_v2(Bucket=BUCKET, Prefix="answers/resumed/")["Contents"]
    assert sorted(item["Key"].rsplit("/", 1)[1] for item in listed) == [
        "report.html", "scores.parquet", "summary.json",
    ]  # fmt: skip
    for name in ("report.html", "scores.parquet"):
        s3_place.client().download_file(BUCKET, f"answers/resumed/{name}", str(tmp_path / name))
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
