"""Invariant: a file whose columns cannot make examples is refused before work begins, with the key to set."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.config_file import parse_config
from lorif_core.corpus.columns import needed_columns, optional_columns
from lorif_core.corpus.shards import check_first_file, list_shards, read_rows
from lorif_core.errors import UserError
from tests.chat_templates import CALLS, WEATHER

STORAGE = StorageConfig()
RECORD: dict[str, Any] = {
    "m": CALLS,
    "p": CALLS[:1],
    "c": CALLS[1:],
    "t": "text",
    "n": 3,
    "e": [],
    "tools": [WEATHER],
}


def write(folder: Path, ending: str) -> str:
    path = folder / f"a{ending}"
    if ending == ".jsonl":
        path.write_text(json.dumps(RECORD) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist([RECORD]), path)
    return str(path)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"messages": "m"}, None),
        ({"prompt": "p", "completion": "c", "chat_template": "model"}, None),
        ({"prompt": "t", "completion": "c", "chat_template": "model"}, None),
        ({"prompt": "t", "completion": "t"}, None),
        ({"messages": "mm"}, "has no column 'mm'; .*; did you mean 'm'?"),
        ({"messages": "t"}, "'t' of .* must contain lists of messages with role and content, but contains text"),
        ({"text": "m"}, "'m' of .* must contain strings, but contains messages; set corpus.messages to m"),
        ({"prompt": "p", "completion": "c"}, "'p' .* contains messages; set corpus.chat_template to model, or to"),
        (
            {"prompt": "n", "completion": "c", "chat_template": "model"},
            "must contain strings or lists of messages",
        ),
    ],
)
def test_columns_of_messages(tmp_path: Path, ending: str, columns: dict[str, str], reason: str | None) -> None:
    corpus = CorpusConfig(uri=write(tmp_path, ending), **columns)  # type: ignore[arg-type]
    if reason is None:
        check_first_file(corpus, STORAGE)
        (shard,) = list_shards(corpus, STORAGE).shards
        ((_, record),) = read_rows(shard, needed_columns(corpus), STORAGE, optional_columns(corpus))
        assert ("tools" in record) == corpus.has_chat
        return
    for attempt in (check_first_file, list_shards):
        with pytest.raises(UserError, match=reason):
            attempt(corpus, STORAGE)  # type: ignore[operator]


def test_an_empty_list_in_the_first_row_may_be_tokens_or_messages(tmp_path: Path) -> None:
    for keys in ({"messages": "e"}, {"tokens": "e"}):
        check_first_file(CorpusConfig(uri=write(tmp_path, ".jsonl"), **keys), STORAGE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"messages": "m", "tokens": "t"}, "messages cannot be combined with tokens or prompt"),
        ({"messages": "m", "prompt": "p", "completion": "c"}, "messages cannot be combined with tokens or prompt"),
        ({"chat_template": "model"}, "chat_template needs messages, or prompt and completion"),
        ({"tokens": "t", "chat_template": "model"}, "chat_template needs messages, or prompt and completion"),
        (
            {"messages": "m", "chat_template": "none.jinja"},
            "'none.jinja' cannot be read .No such file or directory.",
        ),
    ],
)
def test_keys_that_do_not_go_together(keys: dict[str, str], reason: str) -> None:
    raw = {"index": "i", "model": {"path": "m"}, "corpus": {"uri": "c", **keys}}
    with pytest.raises(UserError, match=reason):
        parse_config(raw)


def test_a_template_is_a_text_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages[0].content }}")
    for value in (str(path), path.read_text()):
        assert CorpusConfig(uri="c", messages="m", chat_template=value).chat_template == path.read_text()
    assert CorpusConfig(uri="c", messages="m", chat_template="model").chat_template == "model"
