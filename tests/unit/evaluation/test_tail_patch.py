"""Invariants of tail-patch: a step on the query itself makes it more likely, the gain equals the first-order
prediction from the gradients, and every step starts from the same weights.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lorif_core.corpus.tokenise import Example
from lorif_core.errors import LorifError
from lorif_core.evaluation.tail_patch import Patcher, PatchStep, top_columns
from lorif_core.evaluation.training_recipe import token_summed_losses
from tests.models import gpt2, random_examples, scaled


@pytest.fixture
def model() -> Iterator[Any]:
    """Runs on one thread: on a busy machine, two threads would wait for each other at every small kernel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield scaled(gpt2())
    torch.set_num_threads(threads)


EXAMPLES = random_examples(12, shortest=6)


@pytest.mark.parametrize(
    "step", [PatchStep("sgd", 1e-2), PatchStep("adamw", 1e-4)], ids=lambda step: step.optimizer
)
def test_a_step_on_the_query_itself_gains_more_than_on_others(model: Any, step: PatchStep) -> None:
    patcher = Patcher(model, step)
    for query in EXAMPLES[:4]:
        itself = patcher.gain([query], query)
        others = [patcher.gain([other], query) for other in EXAMPLES if other is not query]
        assert itself > max(0.0, *others)


def test_the_gain_is_the_product_of_the_gradients_times_the_step(model: Any) -> None:
    query, proponents = EXAMPLES[0], EXAMPLES[1:4]
    exact = model.double().requires_grad_(True)
    mean = gradient(exact, proponents) / sum(example.scored for example in proponents)
    expected = 1e-3 * float(gradient(exact, [query]) @ mean)
    gain = Patcher(exact.float(), PatchStep("sgd", 1e-3)).gain(proponents, query)
    assert gain == pytest.approx(expected, rel=0.02)


def gradient(model: Any, examples: list[Example]) -> torch.Tensor:
    """Gradient of the token-summed loss with respect to all parameters, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for example in examples:
        ids = torch.from_numpy(example.input_ids).long()[None]
        labels = torch.from_numpy(example.labels).long()
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        scored = labels[1:] != -100
        total = total - scores[scored].gather(1, labels[1:][scored][:, None]).sum()
    return torch.cat([part.flatten() for part in torch.autograd.grad(total, list(model.parameters()))])


def test_weights_are_restored_bit_for_bit_and_gains_repeat(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = token_summed_losses(model, EXAMPLES)
    patcher = Patcher(model, PatchStep("adamw", 0.1))
    gains = [patcher.gain(EXAMPLES[:3], query) for query in EXAMPLES]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    np.testing.assert_array_equal(token_summed_losses(model, EXAMPLES), losses)
    assert [patcher.gain(EXAMPLES[:3], query) for query in EXAMPLES] == gains, (
        "a step must not leave momentum behind"
    )


def test_a_diverging_step_raises_and_is_undone(model: Any) -> None:
    patcher = Patcher(model, PatchStep("sgd", 1e30))
    with pytest.raises(LorifError, match=r"lower tail_patch\.learning_rate"):
        patcher.gain(EXAMPLES[:2], EXAMPLES[2])
    assert np.isfinite(token_summed_losses(model, EXAMPLES)).all()


def test_proponents_are_the_highest_scores() -> None:
    scores = np.array([[0.1, 0.9, 0.9, -1.0], [-np.inf, -2.0, -3.0, -np.inf]], np.float32)
    assert top_columns(scores, 2).tolist() == [[1, 2], [1, 2]]
