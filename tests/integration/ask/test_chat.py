"""Invariant: chat data are indexed and asked about as conversations, by the template of the index."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lorif_core as lc
from flows.build import build
from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.corpus.turns import turns_from_json
from lorif_core.errors import UserError
from lorif_core.lifecycle.update import make_update_plan
from lorif_core.lifecycle.verify import verify
from lorif_core.tables.checksums import TURNS
from tests.chat_templates import CASES, WEATHER, with_template
from tests.integration.lorif import run
from tests.models import gpt2, scaled
from tests.tiny_tokenizer import byte_tokenizer

QWEN = CASES[4]
CITIES = ["Ulm", "Bonn", "Kiel", "Jena", "Hof", "Trier"]

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")


def conversation(city: str, answer: str) -> list[dict[str, object]]:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
    return [
        {"role": "user", "content": f"Rain in {city}?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": answer},
        {"role": "assistant", "content": f"{city}: {answer}."},
    ]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """An index of twelve conversations with tools, from parquet."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = with_template(byte_tokenizer(), QWEN, QWEN.unmarked)
    scaled(gpt2(vocab_size=len(tokenizer), n_positions=512)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [
        {"messages": conversation(city, said), "tools": [WEATHER]} for city in CITIES for said in ("dry", "wet")
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "talks.parquet")
    config = parse_config(
        {
            "index": str(folder / "index"),
            "model": {"path": str(folder / "model")},
            "corpus": {"uri": str(folder / "talks.parquet"), "messages": "messages"},
            "compute": {"workers": 1},
        }
    )
    build(config)
    return config


def test_a_conversation_is_its_own_strongest_example(chat: Config) -> None:
    index = lc.open_index(chat.index)
    query = {"messages": conversation("Kiel", "wet"), "tools": [WEATHER]}
    (top,) = index.top_k([query], 3, normalise="cosine")
    assert top.proponents[0].example_id == "talks.parquet#5"
    tokens, contributions = index.token_scores(query, ["talks.parquet#5"])
    _, scores = index.scores([query])
    np.testing.assert_allclose(contributions.sum(), scores[0, 5], rtol=1e-3)
    scored = "".join(token for token, value in zip(tokens, contributions[:, 0], strict=True) if value)
    assert (
        scored
        == '<tool_call>\n{"name": "weather", "arguments": {"city": "Kiel"}}\n</tool_call><|im_end|>\n'
        + ("Kiel: wet.<|im_end|>\n")
    )


def test_the_turns_are_stored_beside_the_rendered_text_and_printed(
    chat: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    index = lc.open_index(chat.index)
    row = index.store.rows.details(index.generation.factors_version, ["talks.parquet#0"])["talks.parquet#0"]
    said = {turn.role: row["text"][turn.start : turn.end] for turn in turns_from_json(row[TURNS])}
    assert said["user"] == "Rain in Ulm?" and said["tool"] == "dry" and said["assistant"] == "Ulm: dry."
    code, printed, _ = run(capsys, "query", chat.index, "Rain", "--top-k", "2")
    assert code == 0 and "user: Rain in " in printed and "<|im_start|>" not in printed
    _, printed, _ = run(capsys, "query", chat.index, "Rain", "--top-k", "2", "--json")
    assert json.loads(printed.splitlines()[-1])["proponents"][0]["turns"][1]["role"] == "user"
    assert not verify(index.store).damage


def test_a_changed_template_is_not_mixed_with_the_rows_there_are(chat: Config) -> None:
    """Questions are still rendered by the template of the index; new rows need it, and can be given it."""
    index, query = lc.open_index(chat.index), {"messages": conversation("Hof", "dry"), "tools": [WEATHER]}
    _, before = index.scores([query])
    config_file = Path(chat.model.path) / "tokenizer_config.json"
    template_file = Path(chat.model.path) / "chat_template.jinja"
    kept = {path: path.read_text() for path in (config_file, template_file) if path.exists()}
    with_template(byte_tokenizer(), QWEN, QWEN.unmarked.replace("# Tools", "# Functions")).save_pretrained(
        chat.model.path
    )
    try:
        _, after = lc.open_index(chat.index).scores([query])
        np.testing.assert_array_equal(before, after)
        with pytest.raises(UserError, match=r"tokenisation.chat \(template #\w+ there, template #\w+ here\)"):
            make_update_plan(chat)
        own = chat.corpus.model_copy(update={"chat_template": QWEN.unmarked})
        assert make_update_plan(chat.model_copy(update={"corpus": own})).changes.is_empty
    finally:
        for path, text in kept.items():
            path.write_text(text)


def test_queries_of_messages_in_a_batch(chat: Config, tmp_path: Path) -> None:
    from flows.attribute import attribute

    path = tmp_path / "queries.jsonl"
    queries = [{"id": city, "messages": conversation(city, "dry"), "tools": [WEATHER]} for city in CITIES[:2]]
    path.write_text("".join(json.dumps(query) + "\n" for query in queries))
    attribute(chat, str(path), str(tmp_path / "out"), 2)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<span class="role">tool</span>') >= 6  # two queries, and two examples on each side
    assert "Rain in Ulm?" in page
