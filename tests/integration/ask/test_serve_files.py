"""An answer as a file has the rows of the answer, and the suggested questions are passages of the index."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from flows.serve.suggestions import SuggestedQuestions
from lorif_core.config import Config
from lorif_core.search.index import open_index
from tests.integration.serving import RunningServer, running_server

QUESTION = {"prompt": "the dog ", "completion": 'says "a, b"', "top_k": 3}


@pytest.fixture(scope="module")
def server(built: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(built.index, tmp_path_factory.mktemp("log") / "stderr") as started:
        yield started


def hits(answer: dict[str, Any]) -> list[tuple[Any, ...]]:
    sides = (("proponent", answer["proponents"]), ("opponent", answer["opponents"]))
    names = ("rank", "example_id", "score", "uri", "row", "text")
    return [(side, *(hit[name] for name in names)) for side, of_side in sides for hit in of_side]


def test_tables_have_the_rows_of_the_answer(server: RunningServer) -> None:
    answer = server.ask(QUESTION).json()
    for kind, read in (("csv", pa_csv.read_csv), ("parquet", pq.read_table)):
        reply = server.ask({**QUESTION, "format": kind})
        assert reply.headers["content-disposition"] == f'attachment; filename="answer.{kind}"'
        assert reply.headers["x-lorif-generation"] == "1" and reply.status_code == 200
        table = read(io.BytesIO(reply.content))
        expected = hits(answer)
        assert table.column("text").to_pylist() == [row[6] for row in expected]
        assert table.column("side").to_pylist() == [row[0] for row in expected]
        assert table.column("example_id").to_pylist() == [row[2] for row in expected]
        assert table.column("score").to_pylist() == pytest.approx([row[3] for row in expected])


def test_a_report_is_one_page_with_the_answer_and_the_facts(server: RunningServer) -> None:
    answer = server.ask(QUESTION).json()
    reply = server.ask({**QUESTION, "format": "report", "explain": True})
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    page = reply.text
    assert "<!doctype html>" in page and "script-src &#39;sha256-" in page and "Answer from generation 1" in page
    assert all(hit["example_id"] in page for hit in answer["proponents"] + answer["opponents"])
    assert 'class="s t' in page and 'id="coverage"' in page


def test_an_unknown_format_is_refused(server: RunningServer) -> None:
    assert server.ask({**QUESTION, "format": "xlsx"}).status_code == 422


def test_suggestions_are_passages_cut_in_two(server: RunningServer, built: Config) -> None:
    reply = server.get("suggestions").json()["suggestions"]
    store, version = open_index(built.index).store, open_index(built.index).generation.factors_version
    texts = [text for batch in store.rows.metadata(version, ["text"]) for text in batch.column("text").to_pylist()]
    assert len({one["prompt"] for one in reply}) == 3
    for one in reply:
        assert one["completion"].strip() and one["prompt"].strip()
        assert any((one["prompt"] + one["completion"]) in text for text in texts)
        assert server.ask(one).status_code == 200


def test_suggestions_follow_the_generation(built: Config) -> None:
    index = open_index(built.index)

    class Live:
        current = type("Opened", (), {"index": index})

    suggested = SuggestedQuestions(Live())  # type: ignore[arg-type]
    first = suggested.current()
    assert suggested.current() is first
    index.generation = replace(index.generation, generation=2)
    assert suggested.current() == first and suggested.current() is not first
