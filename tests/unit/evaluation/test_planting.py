"""Invariants of planting: a near-duplicate depends only on its seed, has a bounded edit distance from its query
and at least one scored token; sources record the positions of the plants.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.tokenise import make_example
from lorif_core.errors import UserError
from lorif_core.evaluation.config import RecallConfig
from lorif_core.evaluation.inputs import EvaluationInputs
from lorif_core.evaluation.planting import PlantedFolder, edit_tokens, plant, planting_identity
from lorif_core.search.queries import Query, read_pairs
from lorif_core.spec import MASKED
from tests.chat_templates import CASES, TALK, with_template
from tests.models import gpt2, loaded, random_examples
from tests.tiny_tokenizer import byte_tokenizer

CORPUS = CorpusConfig(uri="corpus.jsonl", max_length=64)
TOKENS = np.arange(40, dtype=np.int32)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels, with at least one scored token."""
    ids = np.array(draw(st.lists(st.integers(0, 60), min_size=2, max_size=30)), dtype=np.int32)
    masked = np.array(draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))
    masked[draw(st.integers(1, len(ids) - 1))] = False
    return ids, np.where(masked, MASKED, ids).astype(np.int32)


def distance(a: list[int], b: list[int]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


@given(sequences(), st.floats(0, 1), st.integers(0, 2**32))
def test_edits_are_bounded_seeded_and_leave_a_scored_token(
    sequence: tuple[np.ndarray, np.ndarray], share: float, seed: int
) -> None:
    ids, labels = sequence
    before = ids.copy(), labels.copy()
    first = edit_tokens(ids, labels, share, TOKENS, np.random.default_rng(seed))
    again = edit_tokens(ids, labels, share, TOKENS, np.random.default_rng(seed))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (ids == before[0]).all() and (labels == before[1]).all(), "the query itself must not change"

    new_ids, new_labels = first
    count = max(round(share * (len(ids) - 1)), 1 if share else 0)
    assert distance(ids.tolist(), new_ids.tolist()) <= 2 * count  # a swap counts as two
    assert len(ids) - count <= len(new_ids) <= len(ids) and new_ids.dtype == np.int32
    assert new_ids[0] == ids[0]
    assert set(new_ids.tolist()) <= {*ids.tolist(), *TOKENS.tolist()}
    assert ((new_labels == MASKED) | (new_labels == new_ids)).all(), "a label is its token or masked"
    assert (new_labels[1:] != MASKED).any()
    if share == 0:
        assert (new_ids == ids).all() and (new_labels == labels).all()


def test_more_edits_increase_the_distance() -> None:
    query = np.random.default_rng(0).integers(0, 60, 200).astype(np.int32)
    distances = [
        distance(query.tolist(), edit_tokens(query, query, share, TOKENS, np.random.default_rng(1))[0].tolist())
        for share in (0.0, 0.05, 0.2, 0.6)
    ]
    assert distances[0] == 0 and distances[1] >= 10 and distances == sorted(set(distances))


@pytest.fixture(scope="module")
def inputs() -> EvaluationInputs:
    queries = [make_example(f"q{i}", 0, q.input_ids, q.labels, None) for i, q in enumerate(random_examples(3, 5))]
    return EvaluationInputs(loaded(gpt2()), random_examples(8), queries)


def test_every_query_has_a_source_of_every_kind_at_the_recorded_position(inputs: EvaluationInputs) -> None:
    recall = RecallConfig(edits=(0.0, 0.5), per_query=2)
    pair = Query("0", tokens=(1, 2, 3)), Query("0", tokens=(4, 5, 6))
    planted = plant(inputs, recall, [pair], CORPUS)
    assert [example.example_id for example in planted.queries] == ["q0", "q1", "q2", "pair/0"]
    assert list(planted.examples[:8]) == list(inputs.examples)
    assert [source.column for source in planted.sources] == list(range(8, 8 + 3 * 2 * 2 + 1))
    for source in planted.sources:
        query, duplicate = planted.queries[source.query], planted.examples[source.column]
        assert duplicate.example_id.startswith(f"plant/{query.example_id}") and duplicate.scored
        if source.kind == "copy":
            assert duplicate.content_hash == query.content_hash
        elif source.kind == "0.5 edited":
            assert duplicate.content_hash != query.content_hash
    assert planted.examples[-1].input_ids.tolist() == [4, 5, 6] and planted.sources[-1].kind == "paraphrase"
    again = plant(inputs, recall, [pair], CORPUS)
    assert [e.content_hash for e in again.examples] == [e.content_hash for e in planted.examples]

    pairs_only = plant(inputs, RecallConfig(edits=(), pairs="some.jsonl"), [pair], CORPUS)
    assert [example.example_id for example in pairs_only.queries] == ["pair/0"], (
        "queries without a source are left out"
    )


def test_messages_of_pairs_are_rendered_by_the_template_of_the_corpus(inputs: EvaluationInputs) -> None:
    """Also if the tokenizer has another template."""
    said = Query("0", messages=tuple(TALK)), Query("0", messages=tuple(TALK))
    tokenizer = with_template(byte_tokenizer(), CASES[0], "{{ 'another template' }}")
    with_tokenizer = EvaluationInputs(
        replace(inputs.loaded, tokenizer=tokenizer, vocab_size=len(tokenizer)), inputs.examples, inputs.queries
    )
    chat = CorpusConfig(uri="c.jsonl", messages="messages", max_length=4096, chat_template=CASES[0].template)
    planted = plant(with_tokenizer, RecallConfig(edits=(), pairs="some.jsonl"), [said], chat)
    text = tokenizer.decode(planted.queries[0].input_ids)
    assert "another template" not in text and TALK[-1]["content"] in text


def test_a_duplicate_id_raises(inputs: EvaluationInputs) -> None:
    taken = make_example("plant/q0/copy/0", 0, TOKENS, TOKENS, None)
    with_taken = EvaluationInputs(inputs.loaded, [*inputs.examples, taken], inputs.queries)
    with pytest.raises(UserError, match="'plant/q0/copy/0' would be in the planted corpus twice"):
        plant(with_taken, RecallConfig(), [], CORPUS)


def test_a_planted_corpus_is_written_once_and_never_mixed(inputs: EvaluationInputs, tmp_path: Path) -> None:
    recall = RecallConfig(edits=(0.5,))
    folder = PlantedFolder(str(tmp_path), StorageConfig())
    folder.save(plant(inputs, recall, [], CORPUS), planting_identity(inputs, recall, []))
    corpus = tmp_path / "planted" / "corpus.jsonl"
    written = corpus.stat().st_mtime_ns
    folder.save(plant(inputs, recall, [], CORPUS), planting_identity(inputs, recall, []))
    assert corpus.stat().st_mtime_ns == written, (
        "a new modification time would make every index of the corpus outdated"
    )
    other = RecallConfig(edits=(0.5,), per_query=2)
    with pytest.raises(UserError, match="planted corpus of another per_query"):
        folder.save(plant(inputs, other, [], CORPUS), planting_identity(inputs, other, []))
    pair = Query("0", tokens=(1, 2)), Query("0", tokens=(4, 5))
    with pytest.raises(UserError, match="another pairs"):
        folder.save(plant(inputs, recall, [pair], CORPUS), planting_identity(inputs, recall, [pair]))


def test_pairs_are_queries_with_a_source(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"id": "a", "text": "the cat sees", "source": "a cat saw"}\n'
        '{"prompt": "2 + 2 =", "completion": " 4", "source": {"prompt": "2 plus 2 is", "completion": " four"}}\n'
    )
    first, second = read_pairs(str(path), StorageConfig())
    assert (first[0].query_id, first[0].text, first[1].text) == ("a", "the cat sees", "a cat saw")
    assert (second[0].query_id, second[1].completion) == ("1", " four")
    for row, message in (
        ('{"text": "x"}', "pair 0 of .* has no source"),
        ('{"text": "x", "source": {"prompt": "y"}}', "the source of pair 0 .* it needs text"),
        ('{"source": "x"}', "pair 0 of .* it needs text"),
    ):
        path.write_text(row + "\n")
        with pytest.raises(UserError, match=message):
            read_pairs(str(path), StorageConfig())
