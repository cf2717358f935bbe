"""Safe loading of a model from its checkpoint, and its backward pass."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.errors import MemoryExhaustedError, UserError
from lorif_core.model.checkpoint import Checkpoint, locate
from lorif_core.model.dry_run import uncapturable_layers
from lorif_core.model.fused_gelu import fuse_gelu
from lorif_core.model.head import Head, inner_model, inspect_head, logits_function, output_layer_input
from lorif_core.model.limits import check_tokenizer, embedding_rows, max_positions
from lorif_core.model.loss import HeadLoss, TakeLosses, head_loss, losses_by_token, other_head_loss, token_losses
from lorif_core.model.probe import check_causal, probe_ids
from lorif_core.model.running import model_errors
from lorif_core.model.weights import check_finite, load_full_model
from lorif_core.out_of_memory import is_out_of_memory
from lorif_core.spec import IndexSpec
from lorif_core.storage.faults import one_line

_LOADING_ERRORS = (OSError, ValueError, ImportError, KeyError, SafetensorError)
_HEAD_TOKENS = 4
_examined: dict[str, Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A frozen model in evaluation mode.

    Attributes:
        model: the transformers model.
        tokenizer: None if the checkpoint has none.
        head: how its logits follow from its last hidden state.
        vocab_size: token ids must be smaller, because the embedding has no row or the output no logit for others.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    head: Head
    vocab_size: int

    @property
    def device(self) -> torch.device:
        """Device that token ids must be on."""
        return self.model.get_input_embeddings().weight.device

    @property
    def devices(self) -> set[torch.device]:
        """Devices that have weights: several under a `device_map`."""
        return {parameter.device for parameter in self.model.parameters()}

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights."""
        return self.model.get_input_embeddings().weight.dtype

    def backward(
        self, ids_BT: torch.Tensor, labels_BT: torch.Tensor, take_losses: TakeLosses | None = None
    ) -> torch.Tensor:
        """One forward and one activation-only backward pass of the token-summed loss; hooks receive the gradients.

        Args:
            ids_BT: (B, T) int64, right-padded. No token attends to the padding, and the padding has no loss.
            labels_BT: (B, T) int64, -100 for tokens without a loss; on the CPU they cost a GPU no transfer back.
            take_losses: gets the losses of the tokens.

        Returns:
            (B,) losses, float32.
        """
        with torch.enable_grad():
            if not any((self.head.is_linear, self.head.is_tokenwise, self.head.ends_linear)):
                logits = self.model(input_ids=ids_BT, use_cache=False).logits
                labels_BT = labels_BT.to(logits.device)
                losses = token_losses(logits, labels_BT)
                if losses.requires_grad:
                    losses.sum().backward()
                if take_losses is not None:
                    take_losses(losses_by_token(logits, labels_BT))
                return losses.detach().to(ids_BT.device)
            hidden, loss = self._head_loss(ids_BT, labels_BT)
            if hidden.requires_grad:
                hidden.backward(loss.hidden_grad.to(hidden.device))
            if take_losses is not None:
                take_losses(loss.by_token)
            return loss.losses.to(ids_BT.device)

    def _head_loss(self, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> tuple[torch.Tensor, HeadLoss]:
        """What the head reads, (B, T, H), and the loss; all logits are never in memory at once."""
        if self.head.ends_linear:
            hidden = output_layer_input(self.model, ids_BT)
        else:
            output = inner_model(self.model)(input_ids=ids_BT, use_cache=False)
            hidden = output.last_hidden_state
            if self.head.is_tokenwise:
                logits_of = logits_function(self.model, output)
                return hidden, other_head_loss(hidden.detach(), logits_of, self.head.width, labels_BT)
        head = self.model.get_output_embeddings()
        device = head.weight.device  # under a device_map it may differ from that of the last layer
        return hidden, head_loss(hidden.detach().to(device), head.weight.detach(), head.bias, labels_BT)


def prepare_model(model: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> LoadedModel:
    """Freeze a transformers causal language model and detect whether its head is a plain linear layer."""
    if hasattr(model, "get_base_model"):  # a peft wrapper; the adapters are modules of the base model
        model = model.get_base_model()
    model.eval().requires_grad_(False)
    if model.dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # torch's product of fused experts has no float64
    fuse_gelu(model)
    rows = embedding_rows(model)
    head = inspect_head(model, probe_ids(model, 1, min(_HEAD_TOKENS, max_positions(model) or _HEAD_TOKENS)))
    return LoadedModel(model, tokenizer, head, min(rows, head.width))


def load_model(
    config: ModelConfig, storage: StorageConfig, device: str | None = None, *, is_known: bool = False
) -> LoadedModel:
    """Load a checkpoint from a local folder, an object store or the hub; only safetensors unless `allow_pickle`.

    Args:
        config: the `model` section.
        storage: how to reach an object store.
        device: device of the model when `device_map` is null; None selects GPUs if there are some (`placement`).
        is_known: it has the fingerprint of a checkpoint that was found causal.

    Raises:
        UserError: the folder does not exist, contains no model, or has only pickled weights without
            `allow_pickle`; weights are missing, of another shape, or not finite; the model is not causal; or
            `device_map` leaves weights without a device.
        StoreUnavailableError: the store keeps failing.
        MemoryExhaustedError: the weights do not fit into memory.
    """
    checkpoint = locate(config, storage)
    base = _base(checkpoint)
    with _loading(config):
        model = load_full_model(base or checkpoint, device)
        if base is not None:
            from lorif_core.model.adapter import load_adapter  # imports peft, which takes most of a second

            load_adapter(model, checkpoint.path_with_weights(), config)
        tokenizer = _load_tokenizer(checkpoint)
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        where = "the GPUs have" if config.device_map is None else f"model.device_map = {config.device_map!r} has"
        raise UserError(
            f"{where} no device for some weights of {config.path}; use more devices or another device_map"
        )
    check_finite(model, config.path)
    with model_errors(
        f"the model {config.path} fails on a text of a few random tokens",
        "set another model.dtype, or use another model",
    ):
        loaded = prepare_model(model, tokenizer)
        if not is_known:
            check_causal(loaded.model, config.path, max_positions(model))
    return loaded


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model on the meta device, without weights: it provides layer names, shapes and limits.

    `uncapturable` has the linear layers that cannot be tracked, each with the reason.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    dtype: str
    max_positions: int | None
    uncapturable: Mapping[str, str]


def load_skeleton(config: ModelConfig, storage: StorageConfig) -> Skeleton:
    """Build the modules of a checkpoint on the meta device, adapters included, without fetching weights.

    Raises:
        UserError: the folder does not exist or contains no model, or its tokenizer does not belong to the model.
        StoreUnavailableError: the store keeps failing.
    """
    checkpoint = locate(config, storage)
    base = _base(checkpoint)
    with _loading(config):
        full_model = base or checkpoint
        model_config = AutoConfig.from_pretrained(
            full_model.path_without_weights(), **_loading_options(full_model)
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.trust_remote_code)
            if base is not None:
                from lorif_core.model.adapter import add_adapter

                add_adapter(model, checkpoint.path_without_weights(), config.path)
        tokenizer = _load_tokenizer(checkpoint)
    model.eval()
    check_tokenizer(tokenizer, embedding_rows(model), config.path)
    dtype = str(model_config.dtype or torch.float32).removeprefix("torch.")
    return Skeleton(model, tokenizer, dtype, max_positions(model), _uncapturable(model))


def _uncapturable(model: Any) -> Mapping[str, str]:
    """`uncapturable_layers`, once for each architecture: a command loads the same skeleton several times."""
    shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    architecture = f"{type(model)} {model.config.to_json_string()} {shapes}"
    if architecture not in _examined:
        _examined[architecture] = uncapturable_layers(model)
    return _examined[architecture]


def _base(checkpoint: Checkpoint) -> Checkpoint | None:
    """The base model of an adapter; None for a full model."""
    base = checkpoint.base()
    if base is not None and base.base() is not None:
        raise UserError(
            f"the base model of the adapter {checkpoint.config.path} is an adapter too; merge it into its own "
            f"base model, and set base_model_name_or_path to the result"
        )
    return base


def _loading_options(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


@contextmanager
def _loading(config: ModelConfig) -> Iterator[None]:
    """Turn errors of transformers into a `UserError` of one sentence, and a lack of memory into one of its own."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryExhaustedError(
                f"there is not enough memory for the weights of {config.path}; use fewer compute.workers, a "
                f"model.dtype of fewer bits, or a larger machine"
            ) from None
        if isinstance(error, ModuleNotFoundError):
            raise UserError(
                f"the model {config.path} needs {error.name}, which is not installed: "
                f"pip install 'lorif-pipeline[build]'"
            ) from error
        if isinstance(error, _LOADING_ERRORS):
            raise UserError(f"the model {config.path} cannot be loaded: {one_line(error)}") from error
        raise


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Identity of a tokenizer: a hash of its full state if it is a fast one, else of its vocabulary."""
    if tokenizer is None:
        return "none"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = str(sorted(tokenizer.get_vocab().items()))
    else:
        fields = json.loads(backend.to_str())
        # each call of the tokenizer sets these two, so they are not part of its identity
        state = json.dumps({k: v for k, v in fields.items() if k not in ("truncation", "padding")}, sort_keys=True)
    return "sha256:" + hashlib.sha256(state.encode()).hexdigest()[:32]


def check_same_weights(config: ModelConfig, storage: StorageConfig, spec: IndexSpec) -> None:
    """Reject weights that differ from those of a spec: a folder may have changed since the index was built.

    Raises:
        UserError: the fingerprints differ; the message has both.
    """
    _check_fingerprint("model", config, locate(config, storage).fingerprint(), spec.checkpoint)


def check_same_checkpoint(
    config: ModelConfig, storage: StorageConfig, loaded: LoadedModel, spec: IndexSpec
) -> None:
    """Like `check_same_weights`, and reject another tokenizer too."""
    check_same_weights(config, storage, spec)
    check_same_tokenizer(config, loaded, spec)


def check_same_tokenizer(config: ModelConfig, loaded: LoadedModel, spec: IndexSpec) -> None:
    """Reject a tokenizer that differs from that of a spec. Raises UserError with both fingerprints."""
    _check_fingerprint("tokenizer", config, tokenizer_fingerprint(loaded.tokenizer), spec.tokenisation.tokenizer)


def _check_fingerprint(component: str, config: ModelConfig, actual: str, expected: str) -> None:
    if actual != expected:
        raise UserError(
            f"the {component} at {config.path} has the fingerprint {actual}, but the index was built with "
            f"{expected}; give the path of the checkpoint that the index was built with"
        )


def _load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    if not checkpoint.on_hub and not any(name.startswith(("tokenizer", "vocab")) for name in checkpoint.names):
        return None
    return AutoTokenizer.from_pretrained(checkpoint.path_without_weights(), **_loading_options(checkpoint))
