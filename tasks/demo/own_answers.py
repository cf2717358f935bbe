"""What the demo's model says by itself: its greedy continuations of the beginnings of training passages."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.model.generation import generate
from lorif_core.model.loading import LoadedModel, load_model
from lorif_core.model.token_losses import token_losses
from lorif_core.search.queries import Query, query_example
from tasks.demo.corpus import Paragraph, Question
from tasks.demo.model import POSITIONS

_PROMPT_WORDS = 16
_FEWEST_WORDS, _MOST_TOKENS = 6, 40
_LOOP_WORDS = 3
_SAMPLED = 80  # passages; continuing all of them would take too long

_BEGINNING = re.compile(rf"(?:\s*+\S++){{{_PROMPT_WORDS}}}")


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt from a training passage, the model's greedy continuation, and the mean loss of its tokens."""

    passage: Paragraph
    prompt: str
    completion: str
    nats_per_token: float


def own_questions(model: Path, passages: Sequence[Paragraph], count: int, seed: int) -> list[Question]:
    """The prompts whose greedy continuation the model finds most likely, with these continuations.

    Args:
        model: folder of the model.
        passages: what the model was trained on; prompts are beginnings of some of these, chosen at random.
        count: the most questions; fewer if the model cannot continue so many prompts without a loop.
        seed: seed of the choice of passages.
    """
    loaded = load_model(ModelConfig(path=str(model), dtype="float32"), StorageConfig(), "cpu")
    sampled = random.Random(seed).sample(passages, min(_SAMPLED, len(passages)))
    chosen = most_likely(_continuations(loaded, sampled), count)
    return [
        Question(f"own-{each.passage.paragraph_id.replace('/', '-')}", each.prompt, each.completion, is_own=True)
        for each in chosen
    ]


def most_likely(continuations: Iterable[Continuation], count: int) -> list[Continuation]:
    """The continuations with the lowest loss per token, at most one of passages that share a topic or a text.

    Continuations that repeat words of themselves or of the prompt, or end before a sentence does, are left out.
    """
    chosen: list[Continuation] = []
    for each in sorted(continuations, key=lambda each: each.nats_per_token):
        is_usable = _has_ended(each.completion) and not has_loop(each.prompt, each.completion)
        if is_usable and not any(_are_alike(each, other) for other in chosen):
            chosen.append(each)
    return chosen[:count]


def has_loop(prompt: str, completion: str) -> bool:
    """Whether a completion repeats a few words in a row of itself or of its prompt."""
    words, before = re.findall(r"\w+", prompt + completion), len(re.findall(r"\w+", prompt))
    seen: set[tuple[str, ...]] = set()
    for end in range(_LOOP_WORDS, len(words) + 1):
        run = tuple(words[end - _LOOP_WORDS : end])
        if run in seen and end > before:
            return True
        seen.add(run)
    return False


def beginning(text: str) -> str:
    """The prompt that a passage gives: up to its question, if it begins with one, or its first words."""
    question, mark, _ = text.partition("? ")
    if mark and len(question.split()) <= _PROMPT_WORDS:
        return f"{question}?"
    match = _BEGINNING.match(text)
    return match.group() if match else ""


def _continuations(loaded: LoadedModel, passages: Iterable[Paragraph]) -> Iterator[Continuation]:
    """The continuations of the beginnings of passages, unless their tokens as one text are others."""
    for passage in passages:
        prompt = beginning(passage.text)
        completion = generate(loaded, prompt, _MOST_TOKENS, goes_on=_goes_on).text if prompt else ""
        if completion.strip():
            query = Query(passage.paragraph_id, prompt=prompt, completion=completion)
            example = query_example(query, loaded.tokenizer, loaded.vocab_size, POSITIONS)
            losses_T, first_T = token_losses(loaded, example.input_ids, example.labels)
            if np.allclose(losses_T, first_T, equal_nan=True):
                yield Continuation(passage, prompt, completion, float(np.nanmean(losses_T)))


def _goes_on(text: str) -> bool:
    """Whether a continuation has come neither to the end of a sentence nor to that of a paragraph."""
    return not _has_ended(text) and "\n\n" not in text


def _has_ended(text: str) -> bool:
    """Whether it is at the end of a sentence of some words."""
    return len(text.split()) >= _FEWEST_WORDS and text.endswith(".") and "\n\n" not in text


def _are_alike(first: Continuation, second: Continuation) -> bool:
    shared = set(first.passage.topics) & set(second.passage.topics)
    return bool(shared) or first.completion.split() == second.completion.split()
