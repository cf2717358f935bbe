"""Invariant: rows whose numbers have another meaning have another spec; specs of old indexes keep their hash."""

import json
import re
from dataclasses import replace

from lorif_core.spec import CodeSpec, IndexSpec, LayerSpec, ProjectionSpec, TokenSpec

SPEC = IndexSpec(
    checkpoint="sha256:0",
    model_dtype="float32",
    layers=(LayerSpec("a", 8, 8, 4, 4),),
    projection=ProjectionSpec(factor=2),
    code=CodeSpec("rank", 1, "float16"),
    tokenisation=TokenSpec("none", None, "p", "c", None, None, None, 16, False),
)
STORED = (
    '{"checkpoint":"sha256:0","code":{"dtype":"float16","kind":"rank","rank":1},"format":5,"layers":[{"d1":4,'
    '"d2":4,"in_features":8,"name":"a","out_features":8}],"loss":"token-summed cross-entropy","model_dtype":'
    '"float32","projection":{"calibration_examples":null,"factor":2,"kind":"random","seed":0,"whitening":null},'
    '"store_text":true,"tokenisation":{"chunk":false,"completion":"c","id":null,"labels":null,"max_length":16,'
    '"prompt":"p","text":null,"tokenizer":"none","tokens":null}}'
)
"""As release 0.1.0 stored it, whose pairs were tokenised apart."""


def test_a_spec_of_an_older_release_opens_with_its_hash() -> None:
    assert IndexSpec.from_json(STORED) == SPEC
    assert SPEC.to_json() == STORED and SPEC.hash == "33393da8ea0cbef1"


def test_pairs_that_are_tokenised_as_one_text_do_not_join_older_ones() -> None:
    joined = replace(SPEC, tokenisation=replace(SPEC.tokenisation, pair="joined"))
    assert IndexSpec.from_json(joined.to_json()) == joined and joined.hash != SPEC.hash
    assert json.loads(joined.to_json())["tokenisation"]["pair"] == "joined"
    assert joined.differences_except_checkpoint(SPEC) == ["tokenisation.pair (None there, joined here)"]


def test_a_mask_makes_another_spec() -> None:
    masked = replace(SPEC, tokenisation=replace(SPEC.tokenisation, mask="m"))
    assert IndexSpec.from_json(masked.to_json()) == masked and masked.hash != SPEC.hash


def test_another_chat_template_makes_another_spec_and_is_named_briefly() -> None:
    def of(chat: str | None) -> IndexSpec:
        return replace(SPEC, tokenisation=replace(SPEC.tokenisation, messages="m", chat=chat))

    first, second = of('["{{ messages }}",null,{}]'), of('["{{ messages }}!",null,{}]')
    assert len({SPEC.hash, first.hash, second.hash, of(None).hash}) == 4
    assert IndexSpec.from_json(first.to_json()) == first
    (difference,) = first.differences_except_checkpoint(second)
    assert re.fullmatch(r"tokenisation.chat \(template #\w{8} there, template #\w{8} here\)", difference)
    assert "tokenisation.chat (None there, template #" in "; ".join(first.differences_except_checkpoint(SPEC))


def test_scales_make_another_spec_and_stay_with_further_training() -> None:
    adam = replace(SPEC, projection=ProjectionSpec("folded-adam-whitened", 1))
    scaled, other = adam.with_scales("a" * 16), adam.with_scales("b" * 16)
    assert "scales" not in adam.to_json() and len({SPEC.hash, adam.hash, scaled.hash, other.hash}) == 4
    assert IndexSpec.from_json(scaled.to_json()) == scaled
    assert scaled.projection.without_whitening().kind == "folded-adam"
    (difference,) = scaled.differences_except_checkpoint(other)
    assert difference.startswith("projection.scales")
