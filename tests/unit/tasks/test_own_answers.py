"""The demo's own answers are what its model says first in every place, and are chosen by a rule."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.demo.corpus import Paragraph
from tasks.demo.model import train_demo_model
from tasks.demo.own_answers import Continuation, beginning, has_loop, most_likely, own_questions

SENTENCE = "a b c d e f g h."


def continuation(name: str, nats: float, completion: str = SENTENCE) -> Continuation:
    return Continuation(Paragraph(f"{name}/1", (name,), "text"), "prompt ", f"{name} {completion}", nats)


@pytest.mark.parametrize(
    ("prompt", "completion", "loops"),
    [
        ("", "", False),
        ("", "one two three", False),
        ("", "a b x a b", False),
        ("", "a b c x a b c", True),
        ("", 'is a "cat", is a cat.', True),
        ("", "the\n the  the the", True),
        ("a b c ", "then a b c", True),
        ("a b ", "c then a b c", True),
        ("a b c a b c ", "d e f", False),
    ],
)
def test_a_loop_repeats_words_of_the_completion_or_of_its_prompt(
    prompt: str, completion: str, loops: bool
) -> None:
    assert has_loop(prompt, completion) == loops


def test_the_likeliest_come_first_and_a_topic_comes_once() -> None:
    given = [continuation(name, nats) for name, nats in (("c", 0.9), ("a", 0.2), ("b", 0.5), ("a", 0.1))]
    assert [each.nats_per_token for each in most_likely(given, 2)] == [0.1, 0.5]
    assert [each.nats_per_token for each in most_likely(given, 9)] == [0.1, 0.5, 0.9]


def test_a_passage_that_begins_with_a_question_gives_it_as_the_prompt() -> None:
    assert beginning("From a talk: What is x? It is y. And z? It is w.") == "From a talk: What is x?"
    text = " ".join(f"w{number}" for number in range(30)) + "? Late."
    assert text.startswith(beginning(text)) and len(beginning(text).split()) == 16
    assert beginning("too short") == ""


@pytest.mark.parametrize(
    "completion", ["is is is is is is is is is.", "too short.", "a b c d e f g h i", "a b c d\n\ne f g h i."]
)
def test_loops_and_fragments_are_left_out_even_if_they_are_likely(completion: str) -> None:
    given = [continuation("a", 0.01, completion), continuation("b", 3.0)]
    assert [each.nats_per_token for each in most_likely(given, 2)] == [3.0]


def test_equal_answers_to_two_prompts_come_once() -> None:
    one, two = Paragraph("a/1", ("a",), "t"), Paragraph("b/1", ("b",), "t")
    given = [Continuation(one, "x ", SENTENCE, 0.2), Continuation(two, "y ", f" {SENTENCE}", 0.1)]
    assert [each.passage for each in most_likely(given, 2)] == [two]


def test_own_answers_are_the_models_first_choice_everywhere(tmp_path: Path) -> None:
    subjects = ["cat", "dog", "bird", "horse", "snake", "mouse"]
    texts = [
        f"In this part of the long story we are told that the {subject} goes home early and sleeps until "
        f"the next {day} morning. Then it rains."
        for subject in subjects
        for day in ("Monday", "Friday")
    ]
    passages = [Paragraph(f"{name}/1", (name,), text) for name, text in zip("abcdef", texts[::2], strict=True)]
    model = train_demo_model(texts, tmp_path, epochs=60)
    questions = own_questions(model.folder, passages, 3, seed=0)
    assert 1 <= len(questions) <= 3 and all(question.is_own for question in questions)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for question in questions:
        ids = tokenizer(question.prompt + question.completion)["input_ids"]
        first = len(tokenizer(question.prompt)["input_ids"])
        choices = loaded(torch.tensor([ids])).logits[0].argmax(dim=1).tolist()
        assert len(ids) > first and choices[first - 1 : -1] == ids[first:]
