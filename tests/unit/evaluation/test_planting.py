"""Invariants of planting: a near-duplicate is a function of its seed, no further from its query than was asked
for, and can be trained on; what is planted is found again in its place.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.config import StorageConfig
from lorif_core.corpus.tokenise import make_example
from lorif_core.errors import UserError
from lorif_core.evaluation.config import RecallConfig
from lorif_core.evaluation.inputs import Material
from lorif_core.evaluation.planting import PlantedFolder, edited, plant, planting_identity
from lorif_core.search.queries import Query, read_pairs
from lorif_core.spec import MASKED
from tests.models import gpt2, loaded, random_examples

TOKENS = np.arange(40, dtype=np.int32)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Ids, and labels of which at least one is scored."""
    ids = np.array(draw(st.lists(st.integers(0, 60), min_size=2, max_size=30)), dtype=np.int32)
    masked = np.array(draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))
    masked[draw(st.integers(1, len(ids) - 1))] = False
    return ids, np.where(masked, MASKED, ids).astype(np.int32)


def distance(a: list[int], b: list[int]) -> int:
    """Levenshtein: insertions, deletions and substitutions."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


@given(sequences(), st.floats(0, 1), st.integers(0, 2**32))
def test_edits_are_bounded_seeded_and_leave_something_to_train_on(
    sequence: tuple[np.ndarray, np.ndarray], share: float, seed: int
) -> None:
    ids, labels = sequence
    before = ids.copy(), labels.copy()
    first = edited(ids, labels, share, TOKENS, np.random.default_rng(seed))
    again = edited(ids, labels, share, TOKENS, np.random.default_rng(seed))
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert (ids == before[0]).all() and (labels == before[1]).all(), "the query itself is not changed"

    made, targets = first
    count = max(round(share * (len(ids) - 1)), 1 if share else 0)
    assert distance(ids.tolist(), made.tolist()) <= 2 * count  # a swap counts as two
    assert len(ids) - count <= len(made) <= len(ids) and made.dtype == np.int32
    assert made[0] == ids[0]
    assert set(made.tolist()) <= {*ids.tolist(), *TOKENS.tolist()}
    assert ((targets == MASKED) | (targets == made)).all(), "a label is its token or masked"
    assert (targets[1:] != MASKED).any()
    if share == 0:
        assert (made == ids).all() and (targets == labels).all()


def test_more_edits_lead_further_away() -> None:
    query = np.random.default_rng(0).integers(0, 60, 200).astype(np.int32)
    found = [
        distance(query.tolist(), edited(query, query, share, TOKENS, np.random.default_rng(1))[0].tolist())
        for share in (0.0, 0.05, 0.2, 0.6)
    ]
    assert found[0] == 0 and found[1] >= 10 and found == sorted(set(found))


@pytest.fixture(scope="module")
def material() -> Material:
    queries = [make_example(f"q{i}", 0, q.input_ids, q.labels, None) for i, q in enumerate(random_examples(3, 5))]
    return Material(loaded(gpt2()), random_examples(8), queries)


def test_every_query_has_a_source_of_every_kind_where_it_says(material: Material) -> None:
    recall = RecallConfig(edits=(0.0, 0.5), per_query=2)
    pair = Query("0", tokens=(1, 2, 3)), Query("0", tokens=(4, 5, 6))
    planted = plant(material, recall, [pair], 64)
    assert [example.example_id for example in planted.queries] == ["q0", "q1", "q2", "pair/0"]
    assert list(planted.examples[:8]) == list(material.examples)
    assert [source.column for source in planted.sources] == list(range(8, 8 + 3 * 2 * 2 + 1))
    for source in planted.sources:
        query, made = planted.queries[source.query], planted.examples[source.column]
        assert made.example_id.startswith(f"plant/{query.example_id}") and made.scored
        if source.kind == "copy":
            assert made.content_hash == query.content_hash
        elif source.kind == "0.5 edited":
            assert made.content_hash != query.content_hash
    assert planted.examples[-1].input_ids.tolist() == [4, 5, 6] and planted.sources[-1].kind == "paraphrase"
    again = plant(material, recall, [pair], 64)
    assert [e.content_hash for e in again.examples] == [e.content_hash for e in planted.examples]

    only = plant(material, RecallConfig(edits=(), pairs="some.jsonl"), [pair], 64)
    assert [example.example_id for example in only.queries] == ["pair/0"], "queries without a source are not asked"


def test_an_id_that_is_taken_is_refused(material: Material) -> None:
    taken = make_example("plant/q0/copy/0", 0, TOKENS, TOKENS, None)
    crowded = Material(material.loaded, [*material.examples, taken], material.queries)
    with pytest.raises(UserError, match="'plant/q0/copy/0' would be in the planted corpus twice"):
        plant(crowded, RecallConfig(), [], 64)


def test_a_planted_corpus_is_written_once_and_never_mixed(material: Material, tmp_path: Path) -> None:
    recall = RecallConfig(edits=(0.5,))
    folder = PlantedFolder(str(tmp_path), StorageConfig())
    folder.keep(plant(material, recall, [], 64), planting_identity(material, recall, []))
    corpus = tmp_path / "planted" / "corpus.jsonl"
    written = corpus.stat().st_mtime_ns
    folder.keep(plant(material, recall, [], 64), planting_identity(material, recall, []))
    assert corpus.stat().st_mtime_ns == written, "its time is its version: indexes of it would be built again"
    other = RecallConfig(edits=(0.5,), per_query=2)
    with pytest.raises(UserError, match="planted corpus of another per_query"):
        folder.keep(plant(material, other, [], 64), planting_identity(material, other, []))
    pair = Query("0", tokens=(1, 2)), Query("0", tokens=(4, 5))
    with pytest.raises(UserError, match="another pairs"):
        folder.keep(plant(material, recall, [pair], 64), planting_identity(material, recall, [pair]))


def test_pairs_are_queries_with_a_source(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"id": "a", "text": "the cat sees", "source": "a cat saw"}\n'
        '{"prompt": "2 + 2 =", "completion": " 4", "source": {"prompt": "2 plus 2 is", "completion": " four"}}\n'
    )
    first, second = read_pairs(str(path), StorageConfig())
    assert (first[0].query_id, first[0].text, first[1].text) == ("a", "the cat sees", "a cat saw")
    assert (second[0].query_id, second[1].completion) == ("1", " four")
    for row, told in (
        ('{"text": "x"}', "pair 0 of .* has no source"),
        ('{"text": "x", "source": {"prompt": "y"}}', "the source of pair 0 .* it needs text"),
        ('{"source": "x"}', "pair 0 of .* it needs text"),
    ):
        path.write_text(row + "\n")
        with pytest.raises(UserError, match=told):
            read_pairs(str(path), StorageConfig())
