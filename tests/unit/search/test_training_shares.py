"""Invariant: the shares of a training text's tokens, and of the layers, add up to the score of the example."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorif_core.config import StorageConfig
from lorif_core.corpus.tokenise import make_example
from lorif_core.search.explanation import explain
from lorif_core.search.index import Index
from lorif_core.search.queries import as_query
from lorif_core.search.shares import TrainingToken
from lorif_core.search.stored_examples import StoredExample, StoredExamples, placed
from lorif_core.spec import TokenSpec
from tests.small_index import PROMPTS, WORDS, build_small, save_model
from tests.tiny_tokenizer import VOCAB, byte_tokenizer

QUERY = {"prompt": "the dog ", "completion": "likes the old tree"}
OTHER = {"prompt": "the dog ", "completion": "sees a red bird"}
PRESETS = ["paper", "compact", "balanced", "fine", "quality"]
SMALL = {"compact": 2, "balanced": 3, "fine": 4}  # ranks that fit the tiny layers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def write(path: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The section `corpus` of a file of records."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return {"uri": str(path), "max_length": 48}


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(count)]


def check(index: Index, query: Any = QUERY, count: int = 6) -> None:
    """Both ends of a ranking: shares of tokens and layers add up, and tokens are in order within the text."""
    parsed = as_query(query, 0)
    (top,) = index.top_k([parsed], count)
    explained = explain(index, parsed, top)
    details = index.store.rows.details(index.generation.factors_version, list(explained.layers))
    assert explained.unshaded is None
    for hit in [*top.proponents, *top.opponents]:
        tokens, layers = explained.training_tokens[hit.example_id], explained.layers[hit.example_id]
        assert sum(layer.share for layer in layers) == pytest.approx(hit.score, rel=1e-2)
        assert sum(token.share for token in tokens) == pytest.approx(hit.score, rel=1e-2)
        bounds = [bound for token in tokens for bound in (token.start, token.end)]
        assert bounds == sorted(bounds) and 0 <= bounds[0] <= bounds[-1] <= len(details[hit.example_id]["text"])
        assert len({token.share for token in tokens}) > 2


@pytest.mark.parametrize("preset", PRESETS)
def test_shares_add_up_for_every_preset(preset: str, model: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"preset": preset}
    if preset in SMALL:
        sections["code"] = {"kind": "cut", "rank": SMALL[preset], "dtype": "sign"}
    if preset == "paper":
        sections["projection"] = {"kind": "random", "factor": 4}
    corpus = write(tmp_path / "c.jsonl", [{"text": text} for text in sentences(60)])
    index = build_small(tmp_path / "index", model, corpus, factored=preset == "paper", **sections)
    check(index)
    check(index, {"group": [QUERY, "the cat"]})
    check(index, {"contrast": [QUERY, OTHER]})


def records_of(kind: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Records, and the columns that make them examples."""
    texts = sentences(30, seed=1)
    if kind == "prompt":
        return [
            {"prompt": text[: len(text) // 2], "completion": text[len(text) // 2 :]} for text in texts
        ], PROMPTS
    if kind == "long prompt":  # the start of the prompt is cut off
        return [{"prompt": 12 * text, "completion": text[:20]} for text in texts], PROMPTS
    if kind == "long":
        return [{"text": 9 * text} for text in texts], {}
    if kind == "chunks":
        return [{"text": 4 * text} for text in texts], {"chunk": True, "max_length": 32}
    bytes_of = [list(text.encode())[:40] for text in texts]
    if kind == "tokens":
        return [{"tokens": ids} for ids in bytes_of], {"tokens": "tokens"}
    labels = [[-100 if i % 3 else token for i, token in enumerate(ids)] for ids in bytes_of]
    rows = [{"tokens": ids, "labels": targets} for ids, targets in zip(bytes_of, labels, strict=True)]
    return rows, {"tokens": "tokens", "labels": "labels"}


KINDS = ["prompt", "long prompt", "long", "chunks", "tokens", "labels"]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_examples_of_every_kind_are_restored(kind: str, bos: bool, tmp_path: Path) -> None:
    records, columns = records_of(kind)
    corpus = write(tmp_path / "c.jsonl", records) | columns
    index = build_small(tmp_path / "index", save_model(tmp_path / "model", bos=bos), corpus, preset="compact",
                        code={"kind": "cut", "rank": 2, "dtype": "sign"})  # fmt: skip
    check(index)


def test_an_example_that_cannot_be_restored_is_named_a_reason(model: Path, tmp_path: Path) -> None:
    """Labels that no text shows need the file; when it has changed, the rest of the answer stays."""
    records, columns = records_of("labels")
    corpus = write(tmp_path / "c.jsonl", records) | columns
    index = build_small(tmp_path / "index", model, corpus, preset="quality")
    write(tmp_path / "c.jsonl", [*records, records[0]])
    query = as_query(QUERY, 0)
    (top,) = index.top_k([query], 2)
    explained = explain(index, query, top)
    assert explained.training_tokens == {} and "cannot be read again" in str(explained.unshaded)
    assert len(explained.layers) == len(explained.by_example) >= 2


@pytest.mark.parametrize("preset", ["compact", "quality"])
def test_the_token_that_is_predicted_gets_the_share(preset: str, model: Path, tmp_path: Path) -> None:
    """In the MLP of the last block, a gradient comes from the prediction of the next token alone."""
    records: list[dict[str, Any]] = []
    for number, text in enumerate(sentences(20, seed=3)):
        ids = byte_tokenizer()(text.replace("ü", "u").replace("λ", "l"))["input_ids"][:40]
        scored = 1 + number % (len(ids) - 1)
        records.append({"tokens": ids, "labels": [ids[t] if t == scored else -100 for t in range(len(ids))]})
    corpus = write(tmp_path / "c.jsonl", records) | {"tokens": "tokens", "labels": "labels"}
    index = build_small(tmp_path / "index", model, corpus, preset=preset, layers=r"h\.1\.mlp")
    (top,) = index.top_k([QUERY], 5)
    shares = index.training_shares(QUERY, [hit.example_id for hit in top.proponents])
    for hit in top.proponents:
        labels = records[int(hit.example_id.rpartition("#")[2])]["labels"]
        (scored,) = [t for t, label in enumerate(labels) if label != -100]
        (token,) = [token for token in shares.tokens[hit.example_id] if abs(token.share) > 1e-6 * abs(hit.score)]
        assert (token.start, token.end) == (scored, scored + 1)
        assert token.share == pytest.approx(hit.score, rel=1e-2)


@pytest.mark.parametrize("after", [0, 2])
def test_a_conversation_is_restored_from_its_turns(after: int) -> None:
    """What the assistant says is scored, in several turns, with the marks that end a turn."""
    text, turns = "", []
    for role, said in (("user", "who?"), ("assistant", "the cat"), ("user", "where?"), ("assistant", "a tree")):
        text += f"<{role[0]}>"
        turns.append((role, len(text), len(text) + len(said)))
        text += f"{said}//"
    ids = np.array(byte_tokenizer()(text)["input_ids"], np.int32)
    labels = np.full_like(ids, -100)
    for role, start, end in turns:
        if role == "assistant":
            labels[start : end + after] = ids[start : end + after]
    stored = make_example("x", 0, ids, labels, text)
    row = {
        "example_id": "x", "row": 0, "text": text, "tokens": len(ids), "content_hash": stored.content_hash,
        "chat_turns": json.dumps(turns),
    }  # fmt: skip
    spec = TokenSpec("t", None, None, None, None, None, None, 512, False)
    restored = StoredExamples(spec, byte_tokenizer(), VOCAB, StorageConfig()).restore(row)
    assert isinstance(restored, StoredExample)
    assert restored.example.labels.tolist() == labels.tolist()


def test_tokens_that_share_a_character_are_one() -> None:
    spans = [(0, 0), (0, 1), (1, 2), (1, 2), (2, 5), (0, 0)]
    assert placed(spans, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]) == [(0, 1, 1.0), (1, 2, 5.0), (2, 5, 4.0), (5, 5, 5.0)]
    assert TrainingToken(*placed(spans, np.ones(6).tolist())[-1]) == TrainingToken(5, 5, 1.0)
