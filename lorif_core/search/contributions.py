"""What a score consists of: contributions of the query's tokens, and of layers, to the scores of given rows.

A score is linear in the query's gradient, and that is a sum over layers and over scored tokens, so both are exact:
they add up to the score, up to rounding. Contributions are in the unit of the score that is not normalised.

Shapes: T tokens of the query, L layers or groups of them, R rows asked for, D = d1 d2 of a layer.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from lorif_core.corpus.tokenise import Example
from lorif_core.errors import UserError
from lorif_core.gradients.codes import decode_rows
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.options import PLAIN
from lorif_core.search.queries import QueryInput, parsed_queries
from lorif_core.search.query_encoder import ModelInput, QueryEncoder, QueryGradients
from lorif_core.search.scoring import queries_at_once, scaled, score_rows
from lorif_core.spec import MASKED
from lorif_core.tables.blocks import Block

REST = "other"
_MEMORY_GB = 0.25  # of the gradients of some tokens
_BROKEN = "\ufffd"  # what a tokenizer makes of a part of a character
_TOKENS_OF_A_CHARACTER = 8  # at most: more are not text


@dataclass(frozen=True, slots=True)
class _Rows:
    """A block of the rows asked for, of one part (by its number); `places` are their columns in the answer."""

    part: int
    places: np.ndarray
    block: Block


def token_scores(
    index: GenerationReader, query: QueryInput, example_ids: Sequence[str], model: ModelInput = None
) -> tuple[list[str], np.ndarray]:
    """The query's tokens as text, and what each adds to the scores of some rows, (T, R) float32.

    Tokens without a loss (the first, those of the prompt) have zeros.

    Args:
        index: the generation to ask.
        query: a single query.
        example_ids: rows, in the order of the answer.
        model: as in `Index.scores`.

    Raises:
        UserError: the query is a group or a contrast, the index factors queries (then a score is no sum over
            tokens), or it has no such row.
    """
    (parsed,) = parsed_queries([query])
    if any(part.part.factored_query for part in index.parts):
        raise UserError("this index factors queries (query.factored), so that no score is a sum over tokens")
    encoders = index.encoders(model)
    example = encoders[-1].example(parsed)
    rows = list(_rows_asked(index, example_ids))
    scales = [
        part.scale(encoder.gradients([parsed])) for part, encoder in zip(index.leaders, encoders, strict=True)
    ]
    found = np.zeros((len(example.input_ids), len(example_ids)), np.float32)
    for tokens in _token_blocks(index, example):
        copies = [_with_one_label(example, token) for token in tokens]
        folded = index.for_parts(
            [
                scaled(part.plain_fold(_each(encoder, copies)), scale.expand(len(copies)))
                for part, encoder, scale in zip(index.leaders, encoders, scales, strict=True)
            ]
        )
        for asked in rows:
            layout, block = index.parts[asked.part].layout, asked.block
            scores = score_rows(block.codes, block.scales, layout, folded[asked.part]).numpy()
            found[np.ix_(np.array(tokens), asked.places)] = scores
    return token_texts(example.input_ids.tolist(), encoders[-1].tokenizer), found


def layer_scores(
    index: GenerationReader,
    query: QueryInput,
    example_ids: Sequence[str],
    groups: str | None = None,
    model: ModelInput = None,
) -> tuple[list[str], np.ndarray]:
    """Names of layers or groups, and what each adds to the scores of some rows, (L, R) float32.

    Args:
        index: the generation to ask.
        query: of any kind.
        example_ids: rows, in the order of the answer.
        groups: a regular expression, searched in the layers' names: its first group, or all that it finds, names
            the group that a layer is of; `other` where it finds nothing. None: every layer alone.
        model: as in `Index.scores`.

    Raises:
        UserError: it is no regular expression, or the index has no such row.
    """
    names = [_group_of(layer.name, groups) for layer in index.parts[-1].spec.layers]
    listed = list(dict.fromkeys(names))
    folded = index.fold(index.encode([query], model), PLAIN)
    found = np.zeros((len(listed), len(example_ids)), np.float64)
    for asked in _rows_asked(index, example_ids):
        layout = index.parts[asked.part].layout
        for number, (name, weight_1D) in enumerate(zip(names, folded[asked.part].weights, strict=True)):
            size = decode_rows(layout.slots[number].layer.dim)
            for start in range(0, len(asked.places), size):
                some = slice(start, start + size)
                decoded_BD = layout.decode(asked.block.codes[some], asked.block.scales[some], number)
                found[listed.index(name), asked.places[some]] += (decoded_BD @ weight_1D[0]).double().numpy()
    return listed, found.astype(np.float32)


def _group_of(layer: str, groups: str | None) -> str:
    if groups is None:
        return layer
    try:
        found = re.search(groups, layer)
    except re.error as error:
        raise UserError(f"groups {groups!r} is no regular expression: {error}") from None
    if found is None:
        return REST
    return (found[1] if found.re.groups else found[0]) or REST


def _rows_asked(index: GenerationReader, example_ids: Sequence[str]) -> Iterator[_Rows]:
    """Blocks of the rows of all parts. Raises UserError at the end if one of them is not there."""
    places: dict[str, list[int]] = {}
    for place, example_id in enumerate(example_ids):
        places.setdefault(example_id, []).append(place)
    missing = set(places)
    for number, part in enumerate(index.parts):
        for block in index.store.rows.of_examples(index.generation.factors_version, part.part.spec, list(places)):
            missing.difference_update(block.example_ids)
            repeated = [(row, place) for row, name in enumerate(block.example_ids) for place in places[name]]
            rows, into = np.array(repeated).T
            chosen = Block([block.example_ids[row] for row in rows], block.codes[rows], block.scales[rows])
            yield _Rows(number, into, chosen)
    if missing:
        raise UserError(f"generation {index.generation.generation} has no example {min(missing)!r}")


def _token_blocks(index: GenerationReader, example: Example) -> Iterator[list[int]]:
    """Positions of the scored tokens, as many at a time as have gradients that fit the memory."""
    scored = [int(token) for token in np.flatnonzero(example.labels != MASKED) if token > 0]
    size = queries_at_once(index.parts[-1].spec.layers, _MEMORY_GB)
    for start in range(0, len(scored), size):
        yield scored[start : start + size]


def _with_one_label(example: Example, token: int) -> Example:
    labels = np.full_like(example.labels, MASKED)
    labels[token] = example.labels[token]
    return replace(example, labels=labels)


def _each(encoder: QueryEncoder, examples: Sequence[Example]) -> QueryGradients:
    return encoder.of_examples(examples, range(len(examples)), [1.0] * len(examples))


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """What each token adds to the text, so that all of them together are the text.

    A token decoded alone may lack its space, and one that is a part of a character has no text: that goes to the
    token that completes it.
    """
    if tokenizer is None:
        return [f" {token}" for token in ids]
    texts: list[str] = []
    before = done = 0  # tokens from `before` are decoded together; the text of those up to `done` is told
    for place in range(len(ids)):
        told, text = (
            tokenizer.decode(ids[before:end], clean_up_tokenization_spaces=False) for end in (done, place + 1)
        )
        waits = text.endswith(_BROKEN) and place + 1 < len(ids) and place - done < _TOKENS_OF_A_CHARACTER
        texts.append("" if waits else text[len(told) :])
        if not waits:
            before, done = done, place + 1
    return texts
