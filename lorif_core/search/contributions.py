"""Contributions of the query's tokens, and of layers, to the scores of given rows.

A score is linear in the query's gradient, which is a sum over layers and over scored tokens. So contributions are
exact: they add up to the score that is not normalised, up to rounding.

Shapes: T tokens of the query, L layers or layer groups, R requested rows, D = d1 d2 of a layer.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lorif_core.corpus.tokenise import Example
from lorif_core.errors import UserError
from lorif_core.gradients.codes import decode_rows
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.options import DEFAULT_OPTIONS
from lorif_core.search.queries import MINUS, Query, QueryInput, parse_queries
from lorif_core.search.query_encoder import ModelInput, QueryEncoder, QueryGradients
from lorif_core.search.scoring import FoldedQueries, queries_at_once, scaled, score_rows
from lorif_core.search.token_texts import token_texts
from lorif_core.spec import MASKED
from lorif_core.tables.blocks import Block

OTHER_GROUP = "other"
_MEMORY_GB = 0.25  # for the gradients of a block of tokens


@dataclass(frozen=True, slots=True)
class RequestedRows:
    """A block of requested rows of one part (by its number), and their columns in the result."""

    part: int
    columns: np.ndarray
    block: Block


def token_scores(
    index: GenerationReader, query: QueryInput, example_ids: Sequence[str], model: ModelInput = None
) -> tuple[list[str], np.ndarray]:
    """The query's tokens as text, and the contribution of each to the scores of some rows, (T, R) float32.

    Tokens without a loss (the first token and those of the prompt) contribute zero. A contrast has the tokens of
    its first query, `MINUS` as one more, and the tokens of its second.

    Args:
        index: the generation to search.
        query: a single query, or a contrast.
        example_ids: ids of the rows, in the order of the result.
        model: as in `Index.scores`.

    Raises:
        UserError: the query is a group, the index factors queries (then a score is not a sum over tokens), or a
            row does not exist.
    """
    (parsed,) = parse_queries([query])
    texts, folded_tokens = by_token(index, parsed, model)
    requested = list(requested_rows(index, example_ids))
    scores_TR = np.zeros((len(texts), len(example_ids)), np.float32)
    for tokens, folded in folded_tokens:
        for rows in requested:
            layout, block = index.parts[rows.part].layout, rows.block
            scores = score_rows(block.codes, block.scales, layout, folded[rows.part]).numpy()
            scores_TR[np.ix_(np.array(tokens), rows.columns)] = scores
    return texts, scores_TR


def by_token(
    index: GenerationReader, query: Query, model: ModelInput
) -> tuple[list[str], Iterator[tuple[list[int], list[FoldedQueries]]]]:
    """A query's tokens as text; and block by block the positions of its scored tokens, each folded as a query.

    Raises:
        UserError: as in `token_scores`.
    """
    if any(part.part.factored_query for part in index.parts):
        raise UserError("this index factors queries (query.factored), so a score is not a sum over tokens")
    encoders = index.encoders(model)
    members = query.members if query.contrast is not None else [(1.0, query)]
    examples = [(weight, encoders[-1].example(member)) for weight, member in members]
    parts = list(zip(index.own_checkpoint_parts, encoders, strict=True))
    scales = [part.scale(encoder.gradients([query])) for part, encoder in parts]
    texts: list[str] = []
    starts = []
    for _, example in examples:
        texts += [MINUS] if texts else []
        starts.append(len(texts))
        texts += token_texts(example.input_ids.tolist(), encoders[-1].tokenizer)

    def fold(copies: Sequence[Example], weight: float) -> list[FoldedQueries]:
        return index.for_all_parts(
            [
                scaled(part.fold_unscaled(_example_gradients(encoder, copies)), weight * scale.expand(len(copies)))
                for (part, encoder), scale in zip(parts, scales, strict=True)
            ]
        )

    def folded() -> Iterator[tuple[list[int], list[FoldedQueries]]]:
        for start, (weight, example) in zip(starts, examples, strict=True):
            for tokens in _token_blocks(index, example):
                copies = [_up_to(example, token) for token in tokens]
                yield [start + token for token in tokens], fold(copies, weight)

    return texts, folded()


def layer_scores(
    index: GenerationReader,
    query: QueryInput,
    example_ids: Sequence[str],
    groups: str | None = None,
    model: ModelInput = None,
) -> tuple[list[str], np.ndarray]:
    """Names of layers or groups, and the contribution of each to the scores of some rows, (L, R) float32.

    Args:
        index: the generation to search.
        query: a query of any kind.
        example_ids: ids of the rows, in the order of the result.
        groups: a regular expression that is searched in the layer names. Its first group, or else the whole match,
            is the name of the layer's group; `other` without a match. None: every layer is its own group.
        model: as in `Index.scores`.

    Raises:
        UserError: `groups` is not a valid regular expression, or a row does not exist.
    """
    names = [_group_of(layer.name, groups) for layer in index.parts[-1].spec.layers]
    distinct = list(dict.fromkeys(names))
    folded = index.fold(index.encode([query], model), DEFAULT_OPTIONS)
    scores_LR = scores_of_layers(index, folded, requested_rows(index, example_ids), len(example_ids))
    grouped_LR = np.zeros((len(distinct), len(example_ids)), np.float64)
    np.add.at(grouped_LR, [distinct.index(name) for name in names], scores_LR)
    return distinct, grouped_LR.astype(np.float32)


def scores_of_layers(
    index: GenerationReader, folded: Sequence[FoldedQueries], requested: Iterable[RequestedRows], columns: int
) -> np.ndarray:
    """The part of each layer in the scores of requested rows, (L, columns) float64, for one folded query."""
    scores_LR = np.zeros((len(index.parts[-1].spec.layers), columns), np.float64)
    for rows in requested:
        layout = index.parts[rows.part].layout
        for number, weight_1D in enumerate(folded[rows.part].weights):
            size = decode_rows(layout.slots[number].layer.dim)
            for start in range(0, len(rows.columns), size):
                chunk = slice(start, start + size)
                decoded_BD = layout.decode(rows.block.codes[chunk], rows.block.scales[chunk], number)
                scores_LR[number, rows.columns[chunk]] = (decoded_BD @ weight_1D[0]).double().numpy()
    return scores_LR


def _group_of(layer: str, groups: str | None) -> str:
    if groups is None:
        return layer
    try:
        match = re.search(groups, layer)
    except re.error as error:
        raise UserError(f"groups {groups!r} is not a valid regular expression: {error}") from None
    if match is None:
        return OTHER_GROUP
    return (match[1] if match.re.groups else match[0]) or OTHER_GROUP


def requested_rows(index: GenerationReader, example_ids: Sequence[str]) -> Iterator[RequestedRows]:
    """Blocks of the requested rows of all parts. Raises UserError at the end if a row does not exist."""
    columns: dict[str, list[int]] = {}
    for column, example_id in enumerate(example_ids):
        columns.setdefault(example_id, []).append(column)
    missing = set(columns)
    for number, part in enumerate(index.parts):
        for block in index.store.rows.of_examples(index.generation.factors_version, part.part.spec, list(columns)):
            missing.difference_update(block.example_ids)
            pairs = [(row, column) for row, name in enumerate(block.example_ids) for column in columns[name]]
            rows, row_columns = np.array(pairs).T
            repeated = Block([block.example_ids[row] for row in rows], block.codes[rows], block.scales[rows])
            yield RequestedRows(number, row_columns, repeated)
    if missing:
        raise UserError(f"generation {index.generation.generation} has no example {min(missing)!r}")


def _token_blocks(index: GenerationReader, example: Example) -> Iterator[list[int]]:
    """Positions of the scored tokens, in blocks whose gradients fit into the memory."""
    scored = [int(token) for token in np.flatnonzero(example.labels != MASKED) if token > 0]
    size = queries_at_once(index.parts[-1].spec.layers, _MEMORY_GB)
    for start in range(0, len(scored), size):
        yield scored[start : start + size]


def _up_to(example: Example, token: int) -> Example:
    """The example with this token as its last and only scored one, because later ones don't change its loss."""
    labels = np.full_like(example.labels[: token + 1], MASKED)
    labels[token] = example.labels[token]
    return replace(example, input_ids=example.input_ids[: token + 1], labels=labels)


def _example_gradients(encoder: QueryEncoder, examples: Sequence[Example]) -> QueryGradients:
    return encoder.example_gradients(examples, range(len(examples)), [1.0] * len(examples))
