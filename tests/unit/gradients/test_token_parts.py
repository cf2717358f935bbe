"""Invariant: the parts of positions add up to the code, and are those of autograd if the code loses nothing."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM
from transformers.pytorch_utils import Conv1D

from lorif_core.corpus.tokenise import Example
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.extract import Extractor
from lorif_core.gradients.token_parts import TokenParts
from lorif_core.model.layers import tracked_module
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec
from tests.mixtures import MIXTURES
from tests.models import VOCAB, batch_of, gpt2, llama, loaded, neox, random_examples, scaled, tracked

PLAIN = ProjectionSpec(factor=1)
LOSSLESS = CodeSpec("dense", 1, "float32")
CODES = [
    LOSSLESS, CodeSpec("dense", 1, "sign"), CodeSpec("cut", 4, "sign"), CodeSpec("rank", 1, "float16"),
    CodeSpec("rank", 3, "int8"),
]  # fmt: skip


def gemma() -> Gemma2ForCausalLM:
    """A model that caps its logits and normalises the output of each layer."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, head_dim=6,
            num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=64, final_logit_softcapping=3.0,
        )
    ).eval()  # fmt: skip


FAMILIES: dict[str, Callable[[], Any]] = {"gpt2": gpt2, "llama": llama, "gemma2": gemma, "neox": neox}


@contextmanager
def weight_per_position(module: Any, tokens: int) -> Iterator[torch.Tensor]:
    """A linear layer whose weight is a different tensor at each position, (T, in, out), with equal numbers."""
    plain = module.weight.detach() if isinstance(module, Conv1D) else module.weight.detach().T
    weights_Tio = plain.expand(tokens, *plain.shape).clone().requires_grad_(True)
    former = module.forward

    def forward(x_BTi: torch.Tensor) -> torch.Tensor:
        output = torch.einsum("bti,tio->bto", x_BTi, weights_Tio)
        return output if module.bias is None else output + module.bias

    module.forward = forward
    try:
        yield weights_Tio
    finally:
        module.forward = former


def autograd_by_position(model: Any, layer: LayerSpec, example: Example) -> torch.Tensor:
    """The gradient of the token-summed loss by the weight at each position, (T, in, out)."""
    ids = torch.tensor(example.input_ids[None].astype(np.int64))
    labels = torch.tensor(example.labels[None].astype(np.int64))
    with weight_per_position(tracked_module(model, layer.name), ids.shape[1]) as weights:
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, [weights])
    return gradient


def parts_of(extractor: Extractor, examples: list[Example]) -> dict[int, TokenParts]:
    parts: dict[int, TokenParts] = {}
    extractor.token_parts(batch_of(examples), parts.__setitem__)
    return parts


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_equal_autograd_by_position_in_float64(family: str) -> None:
    model = scaled(FAMILIES[family]()).double()
    reference = copy.deepcopy(model)
    subject = loaded(model, torch.float64)
    layers = tracked(subject, 1)
    examples = random_examples(3, seed=4)
    extractor = Extractor(subject, layers, PLAIN, LOSSLESS)
    _, stored = extractor.gradients(batch_of(examples))
    parts = parts_of(extractor, examples)
    torch.manual_seed(5)
    for number, layer in enumerate(layers):
        weight = torch.randn(layer.d1, layer.d2, dtype=torch.float64)
        scores_BT = parts[number].scores(weight, stored[number].double() @ weight.flatten())
        for example, scores_T in zip(examples, scores_BT, strict=True):
            expected_T = (autograd_by_position(reference, layer, example) * weight).sum(dim=(1, 2))
            length, error = len(expected_T), 1e-5 if family == "gemma2" else 1e-9  # its norms are in float32
            atol = error * float(expected_T.abs().max())
            torch.testing.assert_close(scores_T[:length], expected_T, rtol=error, atol=atol)
            assert not scores_T[length:].any(), "padding has no part"


@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code.kind} {code.rank} {code.dtype}")
@pytest.mark.parametrize("family", ["llama", "olmoe"])
def test_parts_add_up_to_what_is_stored_and_to_sums_of_themselves(family: str, code: CodeSpec) -> None:
    """For each code, also where it loses nearly everything; and the sum over chosen positions is theirs."""
    subject = loaded(MIXTURES[family]() if family in MIXTURES else scaled(llama()))
    layers, examples = tracked(subject, 2), random_examples(4, seed=6)
    extractor = Extractor(subject, layers, ProjectionSpec(factor=2), code)
    result = extractor.extract(batch_of(examples))
    layout, codes, scales = (
        CodeLayout(layers, code),
        torch.from_numpy(result.codes),
        torch.from_numpy(result.scales),
    )
    torch.manual_seed(7)
    for number, parts in parts_of(extractor, examples).items():
        layer, stored_BD = layers[number], layout.decode(codes, scales, number)
        weight = torch.randn(layer.d1, layer.d2)
        stored_B = (stored_BD @ weight.flatten()).double()
        scores_BT = parts.scores(weight, stored_B)
        largest = scores_BT.abs().sum(dim=1).max()
        torch.testing.assert_close(scores_BT.sum(dim=1), stored_B, rtol=1e-6, atol=float(1e-6 * largest))
        chosen_BT = (torch.arange(scores_BT.shape[1])[None] % 3 == 1).float().expand(len(examples), -1)
        summed = parts.sum_over(chosen_BT, stored_BD.view(-1, layer.d1, layer.d2))
        expected_B = (scores_BT * chosen_BT).sum(dim=1)
        torch.testing.assert_close(
            (summed * weight).sum(dim=(1, 2)), expected_B, rtol=1e-4, atol=float(1e-5 * largest)
        )


@pytest.mark.parametrize("arrangement", ["outer", "inner"])
def test_rows_of_one_position_are_added_up(arrangement: str) -> None:
    """A layer may be used twice, or have several rows at each position; the last position has no gradient."""
    torch.manual_seed(8)
    A, E = torch.randn(2, 12, 5, dtype=torch.float64), torch.randn(2, 12, 4, dtype=torch.float64)
    positions = torch.arange(12) % 6 if arrangement == "outer" else torch.arange(12) // 2
    E[:, positions == 5] = 0
    weight = torch.randn(5, 4, dtype=torch.float64)
    parts = TokenParts(A, E, None, 6)
    G = A.transpose(1, 2) @ E
    scores = parts.scores(weight, (G * weight).sum(dim=(1, 2)))
    by_row = torch.einsum("bni,io,bno->bn", A, weight, E)
    expected = torch.zeros(2, 6, dtype=torch.float64).index_add_(1, positions, by_row)
    torch.testing.assert_close(scores, expected)
