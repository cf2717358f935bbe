"""Invariant: the words for a likelihood follow from the loss above that of the model's own first choices."""

from pathlib import Path
from typing import Any

import pytest

from lorif_core.model.generation import generate
from lorif_core.search.likelihood import SpokenAnswer, limit_of, spoken_answers, words_of
from lorif_core.search.queries import as_query
from lorif_core.search.query_encoder import QueryEncoder
from tests.small_index import build_small, save_model


def spoken_of(encoder: QueryEncoder, question: dict[str, Any]) -> SpokenAnswer:
    query = as_query(question, 0)
    (spoken,) = spoken_answers(encoder, [query], encoder.gradients([query]).by_token)
    return spoken


def test_the_models_own_continuation_is_what_it_says_by_itself(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "the cat sees it"}\n' * 8)
    corpus = {"uri": str(tmp_path / "c.jsonl"), "max_length": 48}
    encoder = build_small(tmp_path / "index", save_model(tmp_path / "model"), corpus, preset="quality").encoder()
    own = generate(encoder.loaded, "the cat ", 10).text
    spoken = spoken_of(encoder, {"prompt": "the cat ", "completion": own})
    assert spoken.likelihood is not None
    assert spoken.likelihood.words == "the model says this by itself" and spoken.likelihood.is_own
    assert spoken.likelihood.nats_per_token == pytest.approx(spoken.likelihood.own_nats_per_token, abs=1e-4)
    assert "".join(token.text for token in spoken.tokens) == f"the cat {own}"
    question = {"prompt": "the cat ", "completion": "zzzz"}
    other = spoken_of(encoder, question)
    assert other.likelihood is not None
    assert other.likelihood.nats_per_token > other.likelihood.own_nats_per_token and not other.likelihood.is_own
    losses = [token.loss for token in other.tokens if token.loss is not None]
    whole = encoder.gradients([as_query(question, 0)]).losses[0]
    assert len(losses) == 4 and sum(losses) == pytest.approx(float(whole), rel=1e-4)
    assert other.likelihood.nats_per_token == pytest.approx(sum(losses) / 4)
    for several in ({"group": ["the cat"]}, {"contrast": ["the cat", "a dog"]}):
        assert spoken_of(encoder, several) == SpokenAnswer()


def test_words_go_from_likely_to_unlikely() -> None:
    words = [words_of(above) for above in (0.0, 0.5, 2.0, 4.0, 9.0)]
    limits = [limit_of(above) for above in (0.0, 0.5, 2.0, 4.0, 9.0)]
    assert limits == sorted(set(limits)) and [words_of(limit) for limit in limits] == words
    assert len(set(words)) == 5 and words[0].endswith("by itself") and "hardly" in words[-1]


@pytest.mark.parametrize("above", [1.6, 2.6, 3.2])
def test_a_text_that_is_one_of_many_is_not_called_likely(above: float) -> None:
    """At such a loss the first choice is 5 to 25 times as likely in each place."""
    assert words_of(above) == "the model would usually say something else"
