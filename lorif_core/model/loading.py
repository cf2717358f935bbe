"""The model: loading it safely from its checkpoint, and one backward pass."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.activations import FastGELUActivation, NewGELUActivation

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.errors import UserError
from lorif_core.model.checkpoint import Checkpoint, locate
from lorif_core.model.loss import head_loss, token_losses
from lorif_core.spec import IndexSpec
from lorif_core.storage.faults import one_line


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A frozen model in evaluation mode, with its tokenizer if the checkpoint has one."""

    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    has_linear_head: bool

    @property
    def vocab_size(self) -> int:
        """Number of rows of the input embedding: token ids must be below it."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights."""
        return self.model.get_input_embeddings().weight.dtype

    def backward(self, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        """One forward and activation-only backward of the token-summed loss; hooks see the gradients.

        Args:
            ids_BT: (B, T) int64, right-padded. No attention mask is needed: attention is causal, so no real
                token sees the padding, and the padding has no loss.
            labels_BT: (B, T) int64, -100 where not scored.

        Returns:
            (B,) losses, float32.
        """
        with torch.enable_grad():
            if not self.has_linear_head:
                logits = self.model(input_ids=ids_BT, use_cache=False).logits
                losses = token_losses(logits, labels_BT)
                losses.sum().backward()
                return losses.detach()
            hidden = self.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
            head = self.model.get_output_embeddings()
            place = head.weight.device  # with a device_map, not always where the last layer is
            loss = head_loss(hidden.detach().to(place), head.weight.detach(), head.bias, labels_BT.to(place))
            if hidden.requires_grad:
                hidden.backward(loss.hidden_grad.to(hidden.device))
            return loss.losses.to(ids_BT.device)


def prepare_model(model: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> LoadedModel:
    """Freeze a transformers causal language model and find out whether its head is a plain linear layer."""
    if hasattr(model, "get_base_model"):  # peft's wrapper; the adapters live inside the base model
        model = model.get_base_model()
    model.eval().requires_grad_(False)
    _fuse_gelu(model)
    return LoadedModel(model, tokenizer, _has_linear_head(model))


def load_model(config: ModelConfig, storage: StorageConfig, device: str | None = None) -> LoadedModel:
    """Load a checkpoint from a local folder, an object store or the hub; safetensors only, unless `allow_pickle`.

    Args:
        config: the `model` section.
        storage: how to reach an object store.
        device: where to put it when `device_map` is null; None picks CUDA where there is one.

    Raises:
        UserError: the folder is missing or holds no model, or its weights would have to be unpickled.
        StoreUnavailableError: the store keeps failing.
    """
    checkpoint = locate(config, storage)
    base = checkpoint.base()
    with _loading(config):
        model = AutoModelForCausalLM.from_pretrained(
            (base or checkpoint).whole(),
            dtype=config.dtype,
            use_safetensors=None if config.allow_pickle else True,
            device_map=config.device_map,
            **_common(base or checkpoint),
        )
        if base is not None:
            model.load_adapter(checkpoint.whole())
        tokenizer = _load_tokenizer(checkpoint)
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise UserError(
            f"model.device_map = {config.device_map!r} leaves weights of {config.path} off the devices; "
            f"use more of them, or another device_map"
        )
    if config.device_map is None:
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return prepare_model(model, tokenizer)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A checkpoint without its weights (meta device): enough to name layers, shapes and limits."""

    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    dtype: str
    max_positions: int | None


def load_skeleton(config: ModelConfig, storage: StorageConfig) -> Skeleton:
    """Build the modules of a checkpoint on the meta device, adapters included; no weights are fetched.

    Raises:
        UserError: the folder is missing or holds no model.
        StoreUnavailableError: the store keeps failing.
    """
    checkpoint = locate(config, storage)
    base = checkpoint.base()
    with _loading(config):
        settings = AutoConfig.from_pretrained((base or checkpoint).settings(), **_common(base or checkpoint))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, trust_remote_code=config.trust_remote_code)
            if base is not None:
                model.add_adapter(_adapter_settings(checkpoint.settings()))
        tokenizer = _load_tokenizer(checkpoint)
    dtype = str(settings.dtype or torch.float32).removeprefix("torch.")
    return Skeleton(model, tokenizer, dtype, max_positions(settings))


def _adapter_settings(path: str) -> Any:
    from peft import PeftConfig

    return PeftConfig.from_pretrained(path)


def _common(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


@contextmanager
def _loading(config: ModelConfig) -> Iterator[None]:
    """Errors of transformers as one sentence."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise UserError(f"the model {config.path} cannot be loaded: {one_line(error)}") from error


def max_positions(settings: Any) -> int | None:
    """Longest sequence the position embedding allows, where the model's config states one."""
    return getattr(settings.get_text_config(), "max_position_embeddings", None)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Identity of what a tokenizer does: its full state if it is a fast one, else its vocabulary."""
    if tokenizer is None:
        return "none"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = str(sorted(tokenizer.get_vocab().items()))
    else:
        described = json.loads(backend.to_str())
        # a call sets these two; they are not the tokenizer's identity
        state = json.dumps(
            {k: v for k, v in described.items() if k not in ("truncation", "padding")}, sort_keys=True
        )
    return "sha256:" + hashlib.sha256(state.encode()).hexdigest()[:32]


def check_same_weights(config: ModelConfig, storage: StorageConfig, spec: IndexSpec) -> None:
    """Refuse weights that are not those of a spec: a folder may have been written to meanwhile.

    Raises:
        UserError: naming both fingerprints.
    """
    _require_same("model", config, locate(config, storage).fingerprint(), spec.checkpoint)


def check_same_checkpoint(
    config: ModelConfig, storage: StorageConfig, loaded: LoadedModel, spec: IndexSpec
) -> None:
    """As `check_same_weights`, and the loaded tokenizer too."""
    check_same_weights(config, storage, spec)
    _require_same("tokenizer", config, tokenizer_fingerprint(loaded.tokenizer), spec.tokenisation.tokenizer)


def _require_same(what: str, config: ModelConfig, found: str, expected: str) -> None:
    if found != expected:
        raise UserError(
            f"the {what} at {config.path} has the fingerprint {found}, but the index was built with {expected}; "
            f"name the right checkpoint"
        )


def _load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    if not checkpoint.on_hub and not any(name.startswith(("tokenizer", "vocab")) for name in checkpoint.names):
        return None
    return AutoTokenizer.from_pretrained(checkpoint.settings(), **_common(checkpoint))


def _fuse_gelu(model: torch.nn.Module) -> None:
    """GPT-2's tanh GELU is written out in a dozen kernels; torch has the same function as one."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation | FastGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


def _has_linear_head(model: Any) -> bool:
    """Whether logits = head(last_hidden_state), tried on a few tokens: some models scale or cap them.

    A cap hardly shows in small logits, so a model that has one is believed.
    """
    head = model.get_output_embeddings()
    caps = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if not isinstance(head, torch.nn.Linear) or model.base_model is model or caps:
        return False
    ids = torch.arange(1, 5, device=model.get_input_embeddings().weight.device)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return torch.allclose(head(hidden.to(head.weight.device)).to(logits), logits, rtol=1e-3, atol=1e-3)
