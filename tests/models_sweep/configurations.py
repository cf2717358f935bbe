"""The configurations of the sweep: one for each causal architecture of transformers, and variants of them.

`OVERRIDES` has what an architecture needs beside the small values of `shrinking.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.models_sweep.variants import HEADS, VARIANTS


@dataclass(frozen=True, slots=True)
class Configuration:
    """One small model: a model type of transformers, and what differs from the small values."""

    model_type: str
    variant: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    head_gain: float = 1.0

    @property
    def name(self) -> str:
        """The model type and the variant."""
        return f"{self.model_type}: {self.variant}" if self.variant else self.model_type


_MLA = {"num_key_value_heads": 4}
_MAMBA2_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8}
_VISION = {"image_size": 28, "patch_size": 14}
_BLT_PART = {"num_hidden_layers": 2, "hidden_size_global": 32, "num_key_value_heads": 4}
_GEMMA4_TEXT = {"layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 8}

OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": _MLA,
    "axk2": _MLA,
    "bamba": {**_MAMBA2_HEADS, "attn_layer_indices": [1]},
    "blt": {
        "patcher_config": _BLT_PART, "encoder_config": _BLT_PART, "decoder_config": _BLT_PART,
        "global_config": _BLT_PART,
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
             "ffn_config": {"ffn_hidden_size": 24, "moe_top_k": 2}},
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "deepseek_v4": {
        "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"], "index_topk": 2,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"text_config": _MLA, "vision_config": {
        "mlp_layer_types": ["dense", "dense"], "per_layer_config": {}, "adapter_in_dim": 32, "adapter_out_dim": 32,
    }, "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32}},
    "dots3_note_text": _MLA,
    "fuyu": {"text_config": {"model_type": "persimmon"}, "patch_size": 4, "image_size": 16},
    "gemma3": {"vision_config": {"model_type": "siglip_vision_model", **_VISION}, "mm_tokens_per_image": 4},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": _GEMMA4_TEXT,
    "gemma4_unified": {"text_config": _GEMMA4_TEXT, "vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 8,
                       "patch_size": 4}},
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": _MLA,
    "got_ocr2": {"text_config": {"model_type": "qwen2"}, "vision_config": {**_VISION, "mlp_dim": 32,
                 "output_channels": 8, "global_attn_indexes": [1]}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_MAMBA2_HEADS, "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {**_MLA, "head_dim": 4},
    "mamba2": {"num_heads": 8},
    "minicpm3": _MLA,
    "ministral": {"head_dim": 8},
    "moshi": {"audio_encoder_config": {"model_type": "mimi"}, "head_dim": 8},
    "moss_transcribe_diarize": {"text_config": {"model_type": "qwen3"}},
    "reformer": {"is_decoder": True, "attn_layers": ["local", "lsh"], "axial_pos_shape": [4, 16],
                 "axial_pos_embds_dim": [16, 16]},
    "xmod": {"default_language": "en_XX"},
    "youtu": _MLA,
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
               "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

REFERENCE_IN_FLOAT32 = {"xglm", "xlnet", "inkling2_text"}
"""Model types whose forward pass in transformers fails in float64."""

NOT_MADE = {
    "gemma3n": "its vision tower needs the package timm; gemma3n_text has the same language model",
    "gemma4_assistant": "transformers cannot build it from its own configuration",
    "gemma4_unified_assistant": "transformers cannot build it from its own configuration",
    "musicgen": "transformers cannot build it from its own configuration",
    "musicgen_melody": "transformers cannot build it from its own configuration",
}
"""Model types of which no small model can be made here, and why."""

_LOOKING_AHEAD = (
    "bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "doge: experts", "electra",
    "ernie", "gemma3_text: looks ahead", "gemma4_text: looks ahead", "megatron-bert", "prophetnet", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
REFUSED: dict[str, str] = {
    **dict.fromkeys(_LOOKING_AHEAD, "looks ahead"),
    "blt": "leave them out with model.exclude",
    "longcat_flash": "leave them out with model.exclude",
    "reformer": "changes with the padding behind it",
    "reformer: local only": "cannot run a forward and backward pass",
    "xlnet": "no layer of this model can be tracked",
}
"""Configurations that must be refused, each with a regular expression of the reason; all others must be right."""


def _configurations() -> Iterator[Configuration]:
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if model_type in NOT_MADE:
            continue
        usual = OVERRIDES.get(model_type, {})
        yield Configuration(model_type, "", usual)
        for variant, overrides in VARIANTS.get(model_type, {}).items():
            yield Configuration(model_type, variant, {**usual, **overrides})


def _with_other_logits(configuration: Configuration) -> Iterator[Configuration]:
    for size, gain in (("small logits", 1e-4), ("moderate logits", 0.2)):
        variant = f"{configuration.variant}, {size}" if configuration.variant else size
        yield replace(configuration, variant=variant, head_gain=gain)


_BY_NAME = {configuration.name: configuration for configuration in _configurations()}
CONFIGURATIONS = (*_BY_NAME.values(), *(other for name in HEADS for other in _with_other_logits(_BY_NAME[name])))
