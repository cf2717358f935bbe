"""Invariant: a continuation is the greedy one, and its tokens are the model's first choices."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lorif_core.errors import UserError
from lorif_core.model.generation import generate
from lorif_core.model.loading import LoadedModel, prepare_model
from lorif_core.model.token_losses import token_losses
from tests.mixtures import MIXTURES
from tests.models import gpt2, llama, make_example, scaled
from tests.tiny_tokenizer import BOS, VOCAB, byte_tokenizer

MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: scaled(gpt2(vocab_size=VOCAB)),
    "llama": lambda: scaled(llama(vocab_size=VOCAB)),
    "mixtral": lambda: MIXTURES["mixtral"](vocab_size=VOCAB, eos_token_id=BOS),
    "nemotron_h": lambda: MIXTURES["nemotron_h"](vocab_size=VOCAB, eos_token_id=BOS),
}


def with_tokenizer(model: Any, *, bos: bool = False) -> LoadedModel:
    return prepare_model(model, byte_tokenizer(bos=bos))


def greedy(loaded: LoadedModel, ids: list[int], count: int) -> list[int]:
    """The same without a cache: all tokens are run again for each."""
    for _ in range(count):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids = [*ids, int(logits[0, -1].argmax())]
    return ids


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_continuation_is_greedy(name: str, bos: bool) -> None:
    loaded = with_tokenizer(MODELS[name](), bos=bos)
    prompt = "the cat "
    ids = ([BOS] if bos else []) + list(prompt.encode())
    expected = greedy(loaded, loaded.tokenizer(prompt)["input_ids"], 12)  # type: ignore[misc]
    seen: list[str] = []
    result = generate(loaded, prompt, 12, goes_on=lambda text: not seen.append(text))
    if BOS in expected[len(ids) :]:
        assert result.reason == "end" and result.tokens == expected[len(ids) :].index(BOS)
    else:
        assert (result.tokens, result.reason) == (12, "length")
        decoded = loaded.tokenizer.decode(expected, skip_special_tokens=True)  # type: ignore[union-attr]
        assert prompt + result.text == decoded.rstrip("\ufffd")
    assert [len(text) for text in seen] == sorted(len(text) for text in seen)
    assert seen[-1] == result.text and not any(text.endswith("\ufffd") for text in seen)
    scored = make_example(expected, [-100] * len(ids) + expected[len(ids) :])
    losses, first = token_losses(loaded, scored.input_ids, scored.labels)
    np.testing.assert_allclose(losses, first, atol=1e-5)
    assert np.isnan(losses[: len(ids)]).all() and not np.isnan(losses[len(ids) :]).any()


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_losses_of_tokens_add_up_to_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For plain heads and those that cap their logits, also in several chunks of logits."""
    from tests.unit.gradients.test_token_parts import gemma

    loaded = prepare_model(scaled(gpt2()) if name == "gpt2" else gemma())
    example = make_example(list(range(3, 33)), [-100] * 4 + list(range(7, 33)))
    ids, labels = (torch.tensor(values[None].astype(np.int64)) for values in (example.input_ids, example.labels))
    monkeypatch.setattr("lorif_core.model.loss._CHUNK_BYTES", 4 * loaded.head.width * 7)
    losses, first = token_losses(loaded, example.input_ids, example.labels)
    assert np.nansum(losses) == pytest.approx(float(loaded.backward(ids, labels)[0]), rel=1e-5)
    assert (np.nan_to_num(first) <= np.nan_to_num(losses) + 1e-6).all()


def test_a_continuation_ends_when_it_must() -> None:
    loaded = with_tokenizer(MODELS["gpt2"]())
    assert generate(loaded, "the cat", 50, seconds=0.0).reason == "time"
    stopped = generate(loaded, "the cat", 50, goes_on=lambda text: len(text) < 3)
    assert stopped.reason == "stopped" and stopped.tokens < 50
    with pytest.raises(UserError, match=r"exceed the 64 that the model takes"):
        generate(loaded, "the cat", 60)
    with pytest.raises(UserError, match="the prompt has no tokens"):
        generate(loaded, "", 5)
    with pytest.raises(UserError, match="no tokenizer"):
        generate(prepare_model(gpt2()), "the cat", 5)
