"""Invariants of the demo's corpus and model."""

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorif_core.errors import LorifError
from tasks.demo.corpus import (
    QUESTIONS,
    Paragraph,
    language_reference,
    library_docstrings,
    passages_on_statements,
    write_jsonl,
)
from tasks.demo.model import POSITIONS, VOCABULARY, continue_demo_model, train_demo_model


@pytest.fixture(scope="module")
def reference() -> list[Paragraph]:
    return language_reference()


def test_passages_are_distinct_and_of_useful_size(reference: list[Paragraph]) -> None:
    words = sorted(len(paragraph.text.split()) for paragraph in reference)
    assert len(reference) > 300
    assert len({paragraph.paragraph_id for paragraph in reference}) == len(reference)
    assert len({" ".join(paragraph.text.lower().split()) for paragraph in reference}) == len(reference)
    assert 60 <= words[len(words) // 2] <= 180
    assert words[len(words) // 20] >= 25


def test_a_quoted_passage_appears_once_with_all_its_topics(reference: list[Paragraph]) -> None:
    pass_statement = [p for p in reference if p.text.startswith('The "pass" statement')]
    with_statement = [p for p in reference if p.text.startswith('The "with" statement\n')]
    assert len(pass_statement) == 1
    assert [(p.paragraph_id, p.topics) for p in with_statement] == [("with/1", ("with", "compound"))]


def test_every_word_of_a_passage_is_in_all_its_topics(reference: list[Paragraph]) -> None:
    words = {topic: set(re.findall(r"\w+", text)) for topic, text in topics.items()}
    for paragraph in reference:
        for topic in paragraph.topics:
            assert set(re.findall(r"\w+", paragraph.text)) <= words[topic], paragraph.paragraph_id


def test_tables_become_lines_without_frames(reference: list[Paragraph]) -> None:
    text = "\n".join(paragraph.text for paragraph in reference)
    assert '"|": Bitwise OR' in text
    assert not re.search(r"\+-{3,}\+-{3,}\+", text)
    assert "|====" not in text


def test_the_passages_on_statements_are_a_part_that_answers_the_typed_questions(
    reference: list[Paragraph],
) -> None:
    chosen = passages_on_statements()
    assert [p for p in reference if p in set(chosen)] == chosen and 40 < len(chosen) < len(reference) / 2
    for word in ('"__cause__"', '"nonlocal"', '"else"', '"__exit__()"'):
        assert any(word in p.text for p in chosen), word


def test_library_docstrings_are_many_distinct_and_in_a_fixed_order() -> None:
    every = library_docstrings(limit=100_000)
    chosen = library_docstrings()
    assert 500 < len(chosen) <= min(1500, len(every))
    assert [p for p in every if p in set(chosen)] == chosen
    assert len({p.paragraph_id for p in every}) == len({p.text for p in every}) == len(every)
    assert {"argparse", "json", "tarfile"} <= {topic for p in chosen for topic in p.topics}


def test_jsonl_has_the_documented_fields(tmp_path: Path) -> None:
    write_jsonl([Paragraph("a/1", ("a", "b"), "“text”\nline")], tmp_path / "corpus.jsonl")
    records = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text("utf-8").splitlines()]
    assert records == [{"id": "a/1", "text": "“text”\nline", "topics": ["a", "b"]}]


def test_questions_are_prompt_and_completion() -> None:
    assert len(QUESTIONS) >= 4
    assert len({question.question_id for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS:
        assert question.prompt.endswith("? ")
        assert question.completion.endswith(".")


TEXTS = ["the else clause runs when no break ends the loop", "a generator returns an iterator", "x", ""] * 4


def test_a_training_makes_a_loadable_folder(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    result = train_demo_model(TEXTS, tmp_path, epochs=5)
    assert result.epochs == result.steps == 5, "all of these texts fit into one batch"
    assert torch.get_num_threads() == threads
    assert result.final_loss < math.log(VOCABULARY), "the loss must be better than that of a uniform guess"
    assert (tmp_path / "model.safetensors").is_file()
    assert not list(tmp_path.glob("*.bin"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.num_parameters() == result.parameters
    ids = tokenizer("naïve “else”\n\tclause")["input_ids"]
    assert tokenizer.decode(ids) == "naïve “else”\n\tclause"
    assert model(torch.tensor([ids])).logits.shape == (1, len(ids), len(tokenizer))
    assert len(tokenizer("loop " * 1000, truncation=True)["input_ids"]) == POSITIONS


def test_a_training_is_repeatable_and_depends_on_the_seed(tmp_path: Path) -> None:
    runs = [train_demo_model(TEXTS, tmp_path / name, epochs=3, seed=4).final_loss for name in ("a", "b")]
    assert runs[0] == runs[1]
    assert runs[0] != train_demo_model(TEXTS, tmp_path / "c", epochs=3, seed=5).final_loss


def test_the_model_learns_more_than_frequencies(tmp_path: Path) -> None:
    result = train_demo_model(TEXTS, tmp_path, epochs=12)
    assert result.final_loss < 0.8 * result.unigram_loss


@contextmanager
def noted(epochs: list[int]) -> Iterator[Callable[[int], None]]:
    """In the place of a recording: notes the epochs."""
    yield epochs.append


def test_continued_training_starts_where_the_first_ended(tmp_path: Path) -> None:
    """One step changes the weights a little, the tokenizer stays, and the first model's files do not change."""
    first = train_demo_model(TEXTS, tmp_path / "model", epochs=5)
    files = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    texts, epochs = [*TEXTS, "exceptions are raised"], list[int]()
    further = continue_demo_model(first.folder, texts, tmp_path / "next", 1, lambda _: noted(epochs))
    assert epochs == [0]
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == files
    assert (further.folder / "tokenizer.json").read_bytes() == files["tokenizer.json"]
    old, new = (AutoModelForCausalLM.from_pretrained(model.folder) for model in (first, further))
    for name, before in old.named_parameters():
        after = new.get_parameter(name)
        assert (after - before).norm() < 0.05 * before.norm() + 1e-3, name
    assert not torch.equal(new.transformer.wte.weight, old.transformer.wte.weight)


def test_continued_training_lowers_the_loss(tmp_path: Path) -> None:
    first = train_demo_model(TEXTS, tmp_path / "model", epochs=5)
    further = continue_demo_model(first.folder, TEXTS, tmp_path / "next", 10, lambda _: noted([]))
    assert further.final_loss < first.final_loss and further.parameters == first.parameters


def test_training_for_no_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="positive"):
        train_demo_model(TEXTS, tmp_path, epochs=0)


def test_training_on_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LorifError, match="no text"):
        train_demo_model(["", "x"], tmp_path, epochs=1)
