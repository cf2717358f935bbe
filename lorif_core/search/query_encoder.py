"""Encode queries as gradients: the checkpoint of an index loads once; gradients are in the metric of its spec.

Shapes: Q queries, D = d1 d2 of a layer.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.corpus.batches import collate
from lorif_core.corpus.chat_template import ChatTemplate, template_of
from lorif_core.corpus.messages import Message
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import UserError
from lorif_core.gradients.extract import Extractor
from lorif_core.gradients.roots import SideMatrices
from lorif_core.gradients.side_scales import SideScales
from lorif_core.gradients.token_budget import TokenBudget
from lorif_core.gradients.token_parts import TokenParts
from lorif_core.model.loading import LoadedModel, check_same_tokenizer, check_same_weights, load_model
from lorif_core.search.queries import Query, query_example
from lorif_core.spec import CodeSpec, IndexSpec
from lorif_core.tables.generation import Part

_DENSE = CodeSpec(kind="dense", dtype="float32")
_QUERY_TOKENS_PER_BATCH = 4096

ModelInput = str | ModelConfig | LoadedModel | None


@dataclass(frozen=True, slots=True)
class QueryGradients:
    """Losses and gradients of queries.

    Attributes:
        losses: (Q,) summed over the tokens, in nats.
        layers: per layer the projected gradients, (Q, D) float32.
        by_token: per query (2, T), the loss of each of its tokens and that of the model's first choice in its
            place, NaN if not scored; None for a query that consists of several.
    """

    losses: np.ndarray
    layers: list[torch.Tensor]
    by_token: Sequence[np.ndarray | None]


class QueryEncoder:
    """Turns queries into full-precision projected gradients in the metric of one spec; dense unless `factored`.

    Args:
        loaded: the model that the index was built with.
        spec: spec of the index.
        roots: roots of a whitened projection.
        scales: scales of Adam's metric.
        factored: reduce query gradients to the rank of the stored codes, as the paper does.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        spec: IndexSpec,
        roots: SideMatrices | None = None,
        scales: SideScales | None = None,
        *,
        factored: bool = False,
    ) -> None:
        self._loaded = loaded
        self._spec = spec
        code = CodeSpec("rank", spec.code.rank, "float32") if factored else _DENSE
        self._extractor = Extractor(loaded, spec.layers, spec.projection, code, roots, scales)
        self._budget = TokenBudget(_QUERY_TOKENS_PER_BATCH, spec.tokenisation.max_length, loaded.devices)

    @property
    def loaded(self) -> LoadedModel:
        """The model."""
        return self._loaded

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, if it has one."""
        return self._loaded.tokenizer

    def example(self, query: Query) -> Example:
        """The query's tokens and labels. Raises UserError if no token is scored."""
        longest = self._spec.tokenisation.max_length
        return query_example(query, self._loaded.tokenizer, self._loaded.vocab_size, longest, self._template)

    def opening(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> list[int]:
        """The tokens of messages up to where the assistant's next turn begins.

        Raises:
            UserError: there is no tokenizer or no chat template, or it refuses the messages.
        """
        template = self._template or template_of(self._loaded.tokenizer)
        text = template.render(messages, tools, "the conversation", generation_prompt=True)
        assert self._loaded.tokenizer is not None  # or there is no template
        ids: list[int] = self._loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    @property
    def _template(self) -> ChatTemplate | None:
        """The chat template of the index; None if it has no conversations."""
        chat = self._spec.tokenisation.chat
        return None if chat is None else ChatTemplate.from_json(chat)

    def gradients(self, queries: Sequence[Query]) -> QueryGradients:
        """Losses and gradients in the order of the queries; a query's members enter as a weighted sum.

        Raises:
            UserError: the loss or gradient of a query is not finite, or a query has no scored token.
        """
        members = [(row, *member) for row, query in enumerate(queries) for member in query.members]
        gradients = self.example_gradients(
            [self.example(query) for _, _, query in members],
            [row for row, _, _ in members],
            [weight for _, weight, _ in members],
        )
        losses, layers = gradients.losses, gradients.layers
        for row, query in enumerate(queries):
            if not (np.isfinite(losses[row]) and all(torch.isfinite(layer[row]).all() for layer in layers)):
                raise UserError(f"the loss or gradient of query {query.query_id!r} is not finite under this model")
        return gradients

    def example_gradients(
        self, examples: Sequence[Example], rows: Sequence[int], weights: Sequence[float]
    ) -> QueryGradients:
        """Weighted sums of losses and gradients: every example is added to its row; rows are numbered from 0."""
        lengths = [len(example.input_ids) for example in examples]
        losses = np.zeros(max(rows) + 1, dtype=np.float32)
        by_token: list[np.ndarray | None] = [None] * len(losses)
        members = Counter(rows)
        layers = [torch.zeros(len(losses), layer.dim) for layer in self._spec.layers]

        def add(indices: list[int]) -> None:
            taken: list[torch.Tensor] = []
            batch_losses, gradients = self._extractor.gradients(collate(examples, indices), taken.append)
            for i, tokens_2T in zip(indices, taken[0].numpy(force=True).swapaxes(0, 1), strict=True):
                if members[rows[i]] == 1:
                    by_token[rows[i]] = tokens_2T[:, : lengths[i]]
            into, factors = (np.array([values[i] for i in indices]) for values in (rows, weights))
            np.add.at(losses, into, (batch_losses * factors).astype(np.float32))
            for layer, gradient in zip(layers, gradients, strict=True):
                weighted = gradient * torch.from_numpy(factors).to(gradient)[:, None]
                layer.index_add_(0, torch.from_numpy(into), weighted.float())

        self._budget.run(lengths, add)
        return QueryGradients(losses, layers, by_token)

    def token_parts(
        self,
        examples: Sequence[Example],
        take: Callable[[Sequence[int], int, TokenParts], None],
        restart: Callable[[], None],
    ) -> None:
        """Run training examples.

        Args:
            examples: the examples.
            take: gets the numbers of the examples in a batch, that of a layer, and their parts.
            restart: undoes all that was taken, when memory ran out and smaller batches follow.
        """
        self._budget.run(
            [len(example.input_ids) for example in examples],
            lambda indices: self._extractor.token_parts(collate(examples, indices), partial(take, indices)),
            restart=restart,
        )


def model_config_of(part: Part, path: str | None = None) -> ModelConfig:
    """The location of a part's checkpoint: `path` if given, else the recorded one."""
    moved = path is not None and Path(path).exists()
    return ModelConfig(path=path or part.model_path, revision=None if moved else part.model_revision)


def load_matching(spec: IndexSpec, config: ModelConfig, storage: StorageConfig) -> LoadedModel:
    """Load the checkpoint of a spec, in the dtype of the spec.

    Raises:
        UserError: the checkpoint or tokenizer at that path is not that of the spec.
    """
    check_same_weights(config, storage, spec)  # first, because checks of the build need not be repeated for these
    loaded = load_model(config.model_copy(update={"dtype": spec.model_dtype}), storage, is_known=True)
    check_same_tokenizer(config, loaded, spec)
    return loaded
