"""Invariant: Python builds and asks an index with a call each, in whatever form the data and the question come."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import lorif_core as lc
from lorif_core.errors import UserError
from lorif_core.search.queries import Query

TEXTS = [f"the {animal} sees <b>{number}</b> trees" for animal in ("cat", "dog", "bird") for number in range(14)]
RECORDS = [{"body": text, "name": f"n{number}", "year": 2000 + number} for number, text in enumerate(TEXTS)]
COLUMNS = {"text": "body", "id": "name", "max_length": 64}
QUESTION = "the cat sees"


def build(folder: Path, model: Path, corpus: Any = RECORDS, **keys: Any) -> lc.Index:
    return lc.build(model=model, corpus=corpus, index=folder / "index", columns=COLUMNS, **keys)


@pytest.fixture(scope="module")
def index(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> lc.Index:
    return build(tmp_path_factory.mktemp("library"), model_folder)


def test_an_answer_has_the_texts_of_the_strongest_examples(index: lc.Index) -> None:
    answer = index.query(QUESTION, k=3)
    (top,) = index.top_k([QUESTION], 3)
    for side in ("proponents", "opponents"):
        hits, expected = getattr(answer, side), getattr(top, side)
        assert [(hit.example_id, hit.score) for hit in hits] == [(hit.example_id, hit.score) for hit in expected]
        assert [hit.text for hit in hits] == [TEXTS[int(hit.example_id[1:])] for hit in hits]
    assert answer.loss > 0 and answer.generation == 1
    assert answer.likelihood is not None and answer.likelihood.words.startswith("the model ")


def test_a_question_runs_the_model_once(index: lc.Index) -> None:
    """Its gradient, its loss and its likelihood come from the same pass."""
    embedding = index.encoder().loaded.model.get_input_embeddings()
    runs: list[Any] = []
    handle = embedding.register_forward_hook(lambda _, inputs, __: runs.append(inputs[0].shape))
    try:
        answer = index.query(QUESTION, k=1)
    finally:
        handle.remove()
    assert len(runs) == 1 and answer.likelihood is not None


def test_an_answer_is_a_table(index: lc.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = index.query(QUESTION, k=2)
    table = answer.to_arrow()
    assert table.column_names == ["side", "rank", "example_id", "score", "uri", "row", "text"]
    assert table.column("side").to_pylist() == ["proponent"] * 2 + ["opponent"] * 2
    assert table.column("text").to_pylist() == [hit.text for hit in (*answer.proponents, *answer.opponents)]
    imported = builtins.__import__

    def without_pandas(name: str, *rest: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(UserError, match="to_pandas needs pandas: pip install pandas"):
        answer.to_pandas()


def test_a_notebook_shows_the_page_of_the_report_in_a_frame(index: lc.Index) -> None:
    shown = index.query(QUESTION, explain=True)._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and "Content-Security-Policy" in shown and "Proponent" in shown
    assert "<b>" not in shown and "&lt;" in shown and shown.count("<") == 2, "the page is escaped once more"


def test_each_object_is_one_line(index: lc.Index) -> None:
    generation = index.generation
    for shown in (repr(index), repr(generation), repr(index.query(QUESTION)), repr(index.query("x\n" * 500))):
        assert "\n" not in shown and len(shown) < 250
    assert repr(index).endswith("index', generation 1, 42 rows)") and "42 rows" in repr(generation)
    assert "Answer('the cat sees': 10 proponents, 10 opponents" in repr(index.query(QUESTION))


@pytest.mark.parametrize(
    "question", [QUESTION, {"prompt": "the ", "completion": "cat"}, Query("q", text=QUESTION)]
)
def test_one_question_needs_no_list(index: lc.Index, question: Any) -> None:
    np.testing.assert_array_equal(index.scores(question)[1], index.scores([question])[1])
    assert index.top_k(question, 2) == index.top_k([question], 2)
    assert index.totals(question).equals(index.totals([question]))
    assert next(index.select(question, 0.1)).equals(next(index.select([question], 0.1)))


def test_completion_in_a_notebook_offers_the_documented_names(index: lc.Index) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "python.md").read_text()
    section = page.partition("::: lorif_core.Index")[2].partition("\n#")[0]
    assert set(dir(index)) - {"generation"} == {line.strip(" -") for line in section.splitlines() if "- " in line}
    assert all(hasattr(index, name) for name in dir(index))


def test_the_form_of_the_data_does_not_matter(index: lc.Index, model_folder: Path, tmp_path: Path) -> None:
    """Every form gives the same ids, texts and scores; other values of an example become no rows."""
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    forms: dict[str, Any] = {"path": str(tmp_path / "records.jsonl"), "arrow": pa.Table.from_pylist(RECORDS)}
    for library, made in {"pandas": "DataFrame", "datasets": "Dataset"}.items():
        try:
            module = __import__(library)
        except ImportError:
            continue
        kind = getattr(module, made)
        forms[library] = kind(RECORDS) if library == "pandas" else kind.from_list(RECORDS)
    ids, scores = index.scores(QUESTION)
    for name, form in forms.items():
        other_ids, other = build(tmp_path / name, model_folder, form).scores(QUESTION)
        assert other_ids == ids
        np.testing.assert_array_equal(other, scores)


def test_a_list_of_texts_is_a_corpus_and_another_build_of_it_changes_nothing(
    model_folder: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        index = lc.build(
            model=str(model_folder),
            corpus=TEXTS,
            index=tmp_path / "i",
            columns={"max_length": 64},
            preset="compact",
        )
        assert index.generation.generation == 1 and index.generation.rows == len(TEXTS)
    (hit,) = index.query(QUESTION, k=1).proponents
    assert hit.text == TEXTS[hit.source.row]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no rows": ({"corpus": []}, "the corpus has no rows"),
    "another type": ({"corpus": 3}, "the corpus is a int; give a path, a list of texts"),
    "mixed values": ({"corpus": [{"body": "x"}, {"body": 3}]}, "values of several types in one column"),
    "a column of empty objects": ({"corpus": [{"body": "x", "meta": {}}]}, "cannot be stored as Parquet: "),
    "half a character": ({"corpus": ["a \ud83d"]}, "cannot be stored as Parquet: "),
    "too large a number": ({"corpus": [{"body": "x", "n": 2**70}]}, "cannot be stored as Parquet: "),
    "a name that is no text": ({"corpus": [{"body": "x", 3: 4}]}, "cannot be stored as Parquet: "),
    "a misspelt key": ({"corpus": RECORDS, "presett": "fine"}, "unknown key 'presett'; did you mean 'preset'?"),
    "a missing column": ({"corpus": [{"text": "x"}]}, "no column 'body'"),
}


def test_a_data_frame_that_parquet_cannot_store_is_refused(model_folder: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    mixed = pandas.DataFrame({"body": ["x", "y"], "other": [1, "z"]})
    twice = pandas.DataFrame([["x", "y"]], columns=["body", "body"])
    for frame in (mixed, twice):
        with pytest.raises(UserError, match=r"cannot be stored as Parquet: .*; change these values"):
            build(tmp_path, model_folder, frame)


def test_wrong_options_of_a_question_are_one_sentence(index: lc.Index) -> None:
    for ask in (index.query, index.top_k):
        for k in (0, -1):
            with pytest.raises(UserError, match=f"k is {k}; it must be at least 1"):
                ask(QUESTION, k)
    with pytest.raises(UserError, match="parts of plain scores; leave out normalise"):
        index.query(QUESTION, explain=True, normalise="cosine")


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence(case: str, model_folder: Path, tmp_path: Path) -> None:
    keys, expected = MISTAKES[case]
    with pytest.raises(UserError) as raised:
        build(tmp_path, model_folder, **keys)
    assert expected in str(raised.value) and "\n" not in str(raised.value)
