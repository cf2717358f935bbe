"""Invariant: a model computes texts of its longest length, and no tokenizer or id beyond its limits reaches it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BioGptConfig,
    BloomConfig,
    CodeGenConfig,
    Gemma3Config,
    MptConfig,
    OPTConfig,
    PegasusConfig,
    PreTrainedConfig,
    RobertaConfig,
    RwkvConfig,
    WhisperConfig,
    XLNetConfig,
)

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.errors import UserError
from lorif_core.model.limits import check_tokenizer, embedding_rows, max_positions
from lorif_core.model.loading import load_skeleton, prepare_model
from tests.models import VOCAB, gpt2, llama, neox
from tests.tiny_tokenizer import byte_tokenizer

_SMALL = {
    "vocab_size": VOCAB, "hidden_size": 16, "d_model": 16, "num_hidden_layers": 1, "decoder_layers": 1,
    "n_layers": 1, "n_layer": 1, "num_attention_heads": 2, "decoder_attention_heads": 2, "n_heads": 2, "n_head": 2,
    "ffn_dim": 16, "intermediate_size": 16, "decoder_ffn_dim": 16, "is_decoder": True, "pad_token_id": 1,
    "word_embed_proj_dim": 16,
    "n_embd": 16, "rotary_dim": 4, "d_inner": 16, "num_decoder_layers": 1, "num_decoder_attention_heads": 2,
    "decoder_start_token_id": 2, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip


def small(config: type[PreTrainedConfig], **settings: Any) -> Any:
    return AutoModelForCausalLM.from_config(config(**{**_SMALL, **settings})).eval()


TABLES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: gpt2(n_positions=12),
    "opt": lambda: small(OPTConfig, max_position_embeddings=12),
    "bart": lambda: small(BartConfig, max_position_embeddings=12),
    "biogpt": lambda: small(BioGptConfig, max_position_embeddings=12),
    "roberta": lambda: small(RobertaConfig, max_position_embeddings=14),
    "pegasus": lambda: small(PegasusConfig, max_position_embeddings=12),
    "whisper": lambda: small(WhisperConfig, max_target_positions=12),
    "mpt": lambda: small(MptConfig, max_seq_len=12),
}


@pytest.mark.parametrize("kind", TABLES)
def test_the_limit_is_the_longest_text_that_a_model_computes(kind: str) -> None:
    model = TABLES[kind]()
    assert max_positions(model) == 12
    model(input_ids=torch.full((1, 12), 3), use_cache=False)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 13), 3), use_cache=False)


@pytest.mark.parametrize(
    ("config", "settings", "limit"),
    [
        (CodeGenConfig, {"n_positions": 40, "n_ctx": 99}, 40),
        (RwkvConfig, {"context_length": 40}, 40),
        (XLNetConfig, {}, None),
        (BloomConfig, {}, None),
        (BloomConfig, {"seq_length": 40}, 40),
        (BloomConfig, {"max_sequence_length": -1}, None),
        (BloomConfig, {"max_sequence_length": 0, "n_ctx": 40}, 40),
        (BloomConfig, {"model_max_length": 1e30}, None),
        (BloomConfig, {"max_seq_len": None, "max_length": 20, "sliding_window": 8}, None),
    ],
)
def test_the_limit_is_found_under_every_name(
    config: type[PreTrainedConfig], settings: dict[str, Any], limit: int | None
) -> None:
    with torch.device("meta"):
        assert max_positions(small(config, **settings)) == limit


def test_the_limit_of_the_text_counts_in_a_model_of_images() -> None:
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "max_position_embeddings": 40,
        "head_dim": 8,
        "vocab_size": 61,
    }
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "image_size": 28,
        "patch_size": 14,
        "num_attention_heads": 2,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Gemma3Config(text_config=text, vision_config=vision))
    assert max_positions(model) == 40


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_tiny_vocabularies_load(rows: int) -> None:
    model = prepare_model(gpt2(vocab_size=rows))
    assert model.vocab_size == rows and model.head.is_linear


def test_ids_must_have_a_row_and_a_logit() -> None:
    for model in (llama(), neox()):
        assert prepare_model(model).vocab_size == VOCAB == embedding_rows(model)
    fewer = llama()
    fewer.set_output_embeddings(torch.nn.Linear(24, 50, bias=False))
    assert prepare_model(fewer).vocab_size == 50
    without_count = llama()
    table = without_count.get_input_embeddings()
    del table.num_embeddings
    assert prepare_model(without_count).vocab_size == VOCAB


def test_a_model_without_an_embedding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    monkeypatch.setattr(model, "get_input_embeddings", lambda: torch.nn.Identity())
    with pytest.raises(UserError, match=r"LlamaForCausalLM .*get_input_embeddings"):
        embedding_rows(model)


def test_a_tokenizer_of_another_model_is_refused_before_work(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    gpt2(vocab_size=200).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"accepts ids from 0 to 199: .* is 200, .* and 53 more"):
        load_skeleton(ModelConfig(path=str(tmp_path)), StorageConfig())
    check_tokenizer(tokenizer, 257, "m")
    check_tokenizer(tokenizer, 256, "m")  # its special token does not occur in texts
    check_tokenizer(None, 1, "m")
    with pytest.raises(UserError, match="'<s>' is 256"):
        check_tokenizer(byte_tokenizer(bos=True), 256, "m")
    tokenizer.add_tokens(["<think>"])
    with pytest.raises(UserError, match="'<think>' is 257"):
        check_tokenizer(tokenizer, 257, "m")
