"""Invariant: a query from a file equals the same query from Python; an error names an unscorable query."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lorif_core.config import StorageConfig
from lorif_core.corpus.chat_template import ChatTemplate
from lorif_core.errors import LorifError, UserError
from lorif_core.search.queries import Query, as_query, query_example, read_queries
from tests.chat_templates import CALLS, CASES, TALK, WEATHER, with_template
from tests.tiny_tokenizer import VOCAB, byte_tokenizer

TOKENIZER = byte_tokenizer()
STORAGE = StorageConfig()


def lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write(path: Path, records: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(packed(lines(records)))
    return str(path)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_format_and_kind(tmp_path: Path, ending: str) -> None:
    records = [
        {
            "text": "a",
            "prompt": None,
            "completion": None,
            "tokens": None,
            "labels": None,
            "id": "first",
            "more": 1,
        },
        {"text": "b", "prompt": "p", "completion": "c", "tokens": None, "labels": None, "id": None, "more": 1},
        {
            "text": "c",
            "prompt": "p",
            "completion": "c",
            "tokens": [1, 2],
            "labels": [-100, 2],
            "id": "x",
            "more": 1,
        },
    ]
    assert read_queries(write(tmp_path / f"q{ending}", records), STORAGE) == [
        Query("first", text="a"),
        Query("1", prompt="p", completion="c"),
        Query("x", tokens=(1, 2), labels=(-100, 2)),
    ]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_groups_and_contrasts(tmp_path: Path, ending: str) -> None:
    members = [{"text": "a"}, {"prompt": "p", "completion": "c", "id": "mine"}]
    empty = dict.fromkeys(["id", "group", "contrast", "text"])
    records = [
        {**empty, "id": "g", "group": members},
        {**empty, "contrast": members},
        {**empty, "text": "t"},
    ]
    group, contrast, plain = read_queries(write(tmp_path / f"q{ending}", records), STORAGE)
    a, b = Query("g/0", text="a"), Query("g/1", prompt="p", completion="c")
    assert group == Query("g", group=(a, b)) and group.members == [(0.5, a), (0.5, b)]
    assert [(weight, side.query_id) for weight, side in contrast.members] == [(1.0, "1/0"), (-1.0, "1/1")]
    assert plain.members == [(1.0, plain)]
    assert group.display_text == ("mean of 2: a | pc", None) and contrast.display_text == ("a minus pc", None)
    assert as_query({"group": ["a", members[1]]}, 0).group == (
        Query("0/0", text="a"),
        Query("0/1", None, "p", "c"),
    )


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_messages_are_queries(tmp_path: Path, ending: str) -> None:
    records = [{"messages": CALLS, "tools": [WEATHER], "text": "b", "id": "x"}, {"messages": TALK[:4], "id": "y"}]
    called, talked = read_queries(write(tmp_path / f"q{ending}", records), STORAGE)
    assert called == Query("x", messages=tuple(CALLS), tools=(WEATHER,)) and talked.messages == tuple(TALK[:4])
    call = '{"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}'
    before = f"user: Rain in Ulm?\nassistant: {call}\ntool: dry, 8 degrees\n"
    assert called.display_text == (before, "No rain.")
    assert talked.display_text[0].endswith("assistant: user, naïve 🙂\nuser: And  again?\n")
    assert talked.display_text[1] is None and [role for role, _ in talked.turns] == [m["role"] for m in TALK[:4]]
    members = as_query({"contrast": [{"messages": TALK[:3]}, {"messages": np.array(TALK)}]}, 0).contrast
    assert members == (Query("0/0", messages=tuple(TALK[:3])), Query("0/1", messages=tuple(TALK)))


def test_a_query_of_messages_is_rendered_by_the_template_of_the_index() -> None:
    case = CASES[0]
    tokenizer = with_template(byte_tokenizer(), case, "{{ 'the template of today' }}")
    template = ChatTemplate(case.template, None, {})
    example = query_example(Query("q", messages=tuple(TALK)), tokenizer, 1000, 512, template)
    assert example.text == case.text and example.turns
    scored = tokenizer.decode(example.input_ids[example.labels != -100].tolist())
    assert scored == "".join(text for text, is_scored in case.parts if is_scored)
    tokenizer.chat_template = case.template
    assert query_example(Query("q", messages=tuple(TALK)), tokenizer, 1000, 512).text == case.text
    with pytest.raises(UserError, match=r"messages need a chat template, and the model's tokenizer has none"):
        query_example(Query("q", messages=tuple(TALK)), TOKENIZER, VOCAB, 512)


def test_python_values() -> None:
    assert as_query("hello", 3) == Query("3", text="hello")
    assert as_query({"prompt": "p", "completion": "c", "id": 9}, 0) == Query("9", prompt="p", completion="c")
    assert as_query({"tokens": np.array([1, 2])}, 0) == Query("0", tokens=(1, 2))
    assert as_query({"text": "t", "prompt": "title"}, 0) == Query("0", text="t")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7, "query 5 is a int"),
        ({"prompt": "p"}, "query 5 has prompt; it needs text, or prompt and completion, or tokens"),
        ({}, "query 5 has nothing"),
        ({"text": 3}, "the text of query 5 must be a string"),
        ({"tokens": "12"}, "the tokens of query 5 must be a list of integers"),
        ({"tokens": [1], "labels": [0.5]}, "the labels of query 5"),
        ({"text": "x", "id": 1.5}, "the id of query 5"),
        ({"messages": "hi"}, "the messages of query 5 must be a list of messages"),
        (
            {"messages": [{"role": "user", "content": "hi"}]},
            "the messages of query 5 have no turn of the assistant",
        ),
        (
            {"messages": TALK, "span": {"start": 0, "end": 1}},
            "query 5 has messages and a span; leave out the span",
        ),
        ({"messages": [{"role": "user"}]}, "message 1 of the messages of query 5 has no content"),
        (
            {"messages": [{"role": "assistant", "content": "a"}], "tools": 3},
            "the tools of .*query 5 must be a list",
        ),
        ({"group": []}, "the group of query 5 must be a list of queries, it is \\[\\]"),
        ({"group": "abc"}, "the group of query 5 must be a list of queries, it is 'abc'"),
        ({"group": ["a", 3]}, "member 1 of the group of query 5 is a int; give a string or a dict with text"),
        ({"group": [{"prompt": "p"}]}, "member 0 of the group of query 5 has prompt; it needs text"),
        (
            {"group": [{"contrast": ["a", "b"]}]},
            "member 0 of the group of query 5 is a contrast within a query of",
        ),
        ({"contrast": ["a", "b", "c"]}, "the contrast of query 5 has 3 queries; give two"),
        ({"contrast": ["a", "b"], "text": "t"}, "query 5 has contrast and text; give one of them"),
    ],
)
def test_refused_values(value: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        as_query(value, 5)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_the_error_for_a_file_without_query_columns_lists_its_columns(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"q{ending}", [{"question": "x", "answer": "y"}])
    with pytest.raises(UserError, match=r"question, answer; it needs text, or prompt and completion, or tokens"):
        read_queries(path, STORAGE)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("q.jsonl", b"\n", "is empty"),
        (
            "q.jsonl",
            lines([{"text": "a", "id": "1"}, {"text": "b"}]),
            "query 0 and query 1 of .* have the same id '1'",
        ),
        ("q.jsonl", b'{"text": "a"}\n{"text"\n', "line 2 of .*q.jsonl is not valid JSON"),
        ("q.jsonl", b'["a"]\n', "line 1 of .*q.jsonl is not a JSON object"),
        ("q.jsonl", lines([{"text": "a"}, {"prompt": "b"}]), "query 1 of .*q.jsonl has prompt; it needs"),
        ("q.parquet", b"PAR1 no", "q.parquet is cut off"),
        ("q.jsonl.gz", b"{}", "q.jsonl.gz is not a .gz file"),
        (
            "q.jsonl.gz",
            gzip.compress(lines([{"text": "abc"}] * 9), mtime=0)[:-9],
            "q.jsonl.gz is damaged or cut off",
        ),
        ("q.csv", b"text\n", "no file of a supported format; name files that end in .jsonl"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LorifError, match=reason) as caught:
        read_queries(str(tmp_path / name), STORAGE)
    assert caught.value.exit_code == 2


def test_missing_or_several_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        read_queries(str(tmp_path / "none.jsonl"), STORAGE)
    write(tmp_path / "a.jsonl", [{"text": "a"}])
    write(tmp_path / "b.jsonl", [{"text": "b"}])
    with pytest.raises(UserError, match="2 queries files; name one"):
        read_queries(str(tmp_path), STORAGE)


def test_query_examples() -> None:
    text = query_example(Query("q", text="abc"), TOKENIZER, VOCAB, 2)
    assert (text.example_id, text.scored, text.text, len(text.input_ids)) == ("q", 1, "abc", 2)
    pair = query_example(Query("q", prompt="abcd", completion="xy"), TOKENIZER, VOCAB, 3)
    assert (TOKENIZER.decode(pair.input_ids.tolist()), pair.scored) == ("dxy", 2)
    assert query_example(Query("q", tokens=(1, 2, 3)), None, VOCAB, 8).scored == 2


@pytest.mark.parametrize(
    "query",
    [
        Query("bad", text=""),
        Query("bad", text="a"),
        Query("bad", prompt="abc", completion=""),
        Query("bad", prompt="", completion="a"),
        Query("bad", tokens=(1, 2), labels=(1, -100)),
        Query("bad", tokens=(1, VOCAB)),
        Query("bad", tokens=(1, 2), labels=(1,)),
        Query("bad", group=(Query("bad/0", text="abc"),)),
    ],
)
def test_the_error_names_a_query_that_cannot_be_scored(query: Query) -> None:
    with pytest.raises(UserError, match="query 'bad'"):
        query_example(query, TOKENIZER, VOCAB, 8)


def test_a_text_query_needs_a_tokenizer() -> None:
    with pytest.raises(UserError, match="no tokenizer for query 'q'"):
        query_example(Query("q", text="abc"), None, VOCAB, 8)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_file_of_an_editor_for_windows_is_read(tmp_path: Path, ending: str) -> None:
    content = b"\xef\xbb\xbf" + lines([{"id": "a", "text": "x"}, {"id": "b", "text": "y"}]).replace(b"\n", b"\r\n")
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(ending).suffix, bytes)
    (tmp_path / f"q{ending}").write_bytes(compress(content))
    queries = read_queries(str(tmp_path / f"q{ending}"), StorageConfig())
    assert [(query.query_id, query.text) for query in queries] == [("a", "x"), ("b", "y")]


def test_a_field_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(b'{"text": "x"}\n{"text": "y", "text": "z"}\n')
    with pytest.raises(UserError, match=r"line 2 of .*q\.jsonl has the key 'text' twice"):
        read_queries(str(tmp_path / "q.jsonl"), StorageConfig())


@pytest.mark.parametrize("bos", [False, True])
def test_a_span_scores_the_tokens_that_overlap_it(bos: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    text = "the Zürich tree"  # ü has two tokens
    lead = 1 if bos else 0

    def scored(query: dict[str, object]) -> list[int]:
        example = query_example(as_query(query, 0), tokenizer, VOCAB, 64)
        return [t - lead for t in np.flatnonzero(example.labels != -100).tolist()]

    assert scored({"text": text, "span": {"start": 5, "end": 7}}) == [5, 6, 7]
    assert scored({"prompt": text[:4], "completion": text[4:], "span": {"start": 1, "end": 2}}) == [5, 6]
    grouped = as_query({"group": [{"text": text, "span": {"start": 5, "end": 7}}]}, 0)
    assert grouped.group is not None and grouped.group[0].span == (5, 7)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"text": "the cat", "span": {"start": 3, "end": 8}}, "it must be a part of its 7 characters"),
        ({"text": "the cat", "span": {"start": 3, "end": 3}}, "it must be a part of its 7 characters"),
        ({"text": "the cat", "span": [3, 4]}, "must be an object with the integers start and end"),
        ({"text": "the cat", "span": {"start": 0, "end": 1}}, "has no token to score"),
        ({"tokens": [1, 2, 3], "span": {"start": 0, "end": 1}}, "mark the scored tokens by labels"),
    ],
)
def test_a_span_that_marks_nothing_is_refused(query: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        query_example(as_query(query, 0), byte_tokenizer(), VOCAB, 64)


def test_an_id_must_be_unicode(tmp_path: Path) -> None:
    """A file of answers could not be written with another one, after all the work."""
    (tmp_path / "q.jsonl").write_text('{"id": "\\ud83d", "text": "a"}\n')
    with pytest.raises(UserError, match=r"the id of query 0 .*is not valid Unicode"):
        read_queries(str(tmp_path / "q.jsonl"), STORAGE)
