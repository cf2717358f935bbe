"""A training without some texts differs from the model's own only by them, and all methods are treated alike."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lorif_core.report.block_answers import Attribution
from lorif_core.search.queries import Query
from lorif_core.search.top_k import Scored, TopK
from tasks.demo.corpus import Paragraph
from tasks.demo.counterfactual import answer_losses, compare, named_passages
from tasks.demo.model import Course, continue_demo_model, train_demo_model, train_without

SUBJECTS = ["cat", "dog", "bird", "horse", "snake", "mouse", "whale", "tiger"]
FIRST = [f"the {subject} likes to eat number {len(subject) + place}" for place, subject in enumerate(SUBJECTS)]
LATER = ["a generator returns an iterator", "exceptions are raised and caught", "loops end with break"]


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """Both runs end by the clock, so their learning rates depend on the machine."""
    folder = tmp_path_factory.mktemp("course")
    first = train_demo_model(FIRST, folder / "first", seconds=1.5)
    further = continue_demo_model(first.folder, [*FIRST, *LATER], folder / "further", seconds=0.5)
    return Course(first, tuple(FIRST), further, (*FIRST, *LATER), seed=0)


def test_a_training_without_nothing_ends_with_the_same_weights(course: Course) -> None:
    model = AutoModelForCausalLM.from_pretrained(course.further.folder)
    again = train_without(course, ())
    assert all(torch.equal(again.get_parameter(name), weight) for name, weight in model.named_parameters())


def test_an_answer_loses_most_without_the_text_that_gave_it(course: Course) -> None:
    prompt, completion = FIRST[2][: -len(" number 6")], FIRST[2][-len(" number 6") :]
    queries = [Query("bird", prompt=prompt, completion=completion), Query("late", text=LATER[0])]
    everything = answer_losses(train_without(course, ()), course.first.folder, queries)
    own = answer_losses(train_without(course, {FIRST[2]}), course.first.folder, queries) - everything
    other = answer_losses(train_without(course, {FIRST[5]}), course.first.folder, queries) - everything
    assert own[0] > other[0] + 0.1


def test_texts_of_the_second_run_are_left_out_too(course: Course) -> None:
    names = dict(train_without(course, ()).named_parameters())
    again = train_without(course, set(LATER))
    assert any(not torch.equal(again.get_parameter(name), weight) for name, weight in names.items())


PASSAGES = [Paragraph(f"p/{number}", ("t",), text) for number, text in enumerate([*FIRST, *LATER])]


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
    rises = {"ours": np.array([0.5, 1.0, 1.5]), "random": np.array([0.0, 0.1, -0.1])}
    queries = [Query(name, text="t") for name in "abc"]
    test = compare(np.array([1.0, 2.0, 3.0]), rises, {"ours": {"x", "y"}, "random": {"z"}}, queries, rows=11)
    ours, random = test.removals
    assert (ours.mean, random.mean) == (pytest.approx(1.0), pytest.approx(0.0))
    assert ours.low < ours.mean < ours.high and ours.low >= 0.5 and ours.high <= 1.5
    assert (ours.passages, random.passages, test.rows) == (2, 1, 11)
    assert test.rises("b") == [("ours", 1.0), ("random", 0.1)] and test.rises("typed") == []
