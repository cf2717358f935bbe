"""A training without some texts differs from the model's own only by them, and all methods are treated alike."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lorif_core.report.block_answers import Attribution
from lorif_core.search.queries import Query
from lorif_core.search.top_k import Scored, TopK
from tasks.demo.corpus import Paragraph
from tasks.demo.counterfactual import Spoken, compare, measure, named_passages
from tasks.demo.model import DemoModel, train_demo_model, train_without

SUBJECTS = ["cat", "dog", "bird", "horse", "snake", "mouse", "whale", "tiger"]
FIRST = [f"the {subject} likes to eat number {len(subject) + place}" for place, subject in enumerate(SUBJECTS)]
OTHERS = ["a generator returns an iterator", "exceptions are raised and caught", "loops end with break"]


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> DemoModel:
    return train_demo_model(FIRST, tmp_path_factory.mktemp("former"), epochs=40, seed=3)


def test_a_training_without_nothing_ends_with_the_same_weights(former: DemoModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(former.folder)
    again = train_without(former, FIRST, (), former.seed)
    assert all(torch.equal(again.get_parameter(name), weight) for name, weight in model.named_parameters())
    other = train_without(former, FIRST, (), former.seed + 1)
    assert not torch.equal(other.transformer.wte.weight, again.transformer.wte.weight)


def test_an_answer_loses_most_without_the_text_that_gave_it(former: DemoModel) -> None:
    prompt, completion = FIRST[2][: -len(" number 6")], FIRST[2][-len(" number 6") :]
    queries = [Query("bird", prompt=prompt, completion=completion), Query("other", text=OTHERS[0])]

    def spoken(*left_out: str) -> Spoken:
        return measure(train_without(former, FIRST, left_out, former.seed), former.folder, queries)

    everything, own, other = spoken(), spoken(FIRST[2]), spoken(FIRST[5])
    assert own.losses[0] - everything.losses[0] > other.losses[0] - everything.losses[0] + 0.1
    assert everything.given[0] and not own.given[0] and not everything.given[1]


PASSAGES = [Paragraph(f"p/{number}", ("t",), text) for number, text in enumerate([*FIRST, *OTHERS])]


def attribution(query_id: str, completion: str, strongest_first: list[int]) -> Attribution:
    hits = [Scored(float(-rank), f"p/{number}") for rank, number in enumerate(strongest_first)]
    return Attribution(Query(query_id, prompt="about ", completion=completion), 1.0, TopK(len(hits), hits, hits))


@pytest.mark.parametrize("k", [1, 3])
def test_every_method_names_as_many_passages_of_each_question(k: int) -> None:
    answers = [attribution("one", "the whale", [5, 1, 2, 3]), attribution("two", "break loops", [9, 8, 7, 6])]
    ours, bm25, random = named_passages(answers, PASSAGES, k).values()
    assert [len(set(names)) for method in (ours, bm25, random) for names in method] == [k] * 6
    assert ours[0] == {f"p/{number}" for number in [5, 1, 2][:k]}
    assert "p/6" in bm25[0] and "p/10" in bm25[1]


def test_the_comparison_counts_distinct_passages_and_averages_over_questions() -> None:
    before = Spoken(np.array([1.0, 2.0, 3.0]), np.array([True, True, True]))
    after = {
        "ours": Spoken(np.array([1.5, 3.0, 4.5]), np.array([False, True, False])),
        "bm25": Spoken(np.array([1.1, 2.1, 3.1]), np.array([True, True, True])),
        "random": Spoken(np.array([1.0, 2.1, 2.9]), np.array([True, True, True])),
    }
    left_out = {"ours": {"x", "y"}, "bm25": {"x"}, "random": {"z"}}
    test = compare(before, after, left_out, [Query(name, text="t") for name in "abc"], rows=11)
    ours, _, random = test.removals
    assert (ours.mean, random.mean) == (pytest.approx(1.0), pytest.approx(0.0))
    assert ours.low < ours.mean < ours.high and ours.low >= 0.5 and ours.high <= 1.5
    assert (ours.passages, random.passages, test.rows) == (2, 1, 11)
    assert test.difference.mean == pytest.approx(0.9) and test.difference.low >= 0.4 - 1e-9
    assert test.verdict == "Leaving out ours did more than leaving out bm25"
    outcomes = [(name, round(rise, 9), given) for name, rise, given in test.outcomes("b")]
    assert outcomes == [("ours", 1.0, True), ("bm25", 0.1, True), ("random", 0.1, True)]
    assert test.outcomes("typed") == []
