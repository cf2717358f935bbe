"""Adds an adapter to its base model by peft: every tensor must find a place, and every place must get a tensor.

transformers' own `load_adapter` ignores an adapter whose names do not match, and misplaces DoRA's magnitudes.
"""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, load_peft_weights

from lorif_core.config import ModelConfig
from lorif_core.errors import UserError
from lorif_core.model.weights import ADAPTER_NAME, name_in_model, named
from lorif_core.storage.faults import one_line


def add_adapter(model: Any, folder: str, path: str) -> None:
    """Add the modules of an adapter, whose weights are still random.

    Args:
        model: the base model; it may be on the meta device.
        folder: local folder of the adapter.
        path: `model.path`, for messages.

    Raises:
        UserError: the adapter is more than weights inside the layers.
        ValueError: the adapter does not fit the base model, or its kind is not supported.
    """
    config = PeftConfig.from_pretrained(folder)
    if isinstance(config, LoraConfig):
        _check_lora(config, path)
    config.inference_mode = True
    model.add_adapter(config, ADAPTER_NAME)


def load_adapter(model: Any, folder: str, config: ModelConfig) -> None:
    """Add an adapter with its weights.

    Args:
        model: the base model.
        folder: local folder of the adapter.
        config: the `model` section.

    Raises:
        UserError: a tensor of the adapter has no place or another shape, or a place gets no tensor.
        ValueError: as `add_adapter`.
    """
    if not config.allow_pickle and not (Path(folder) / SAFETENSORS_WEIGHTS_NAME).exists():
        raise UserError(
            f"the adapter {config.path} has no {SAFETENSORS_WEIGHTS_NAME}; save it with safetensors, or set "
            f"model.allow_pickle=true if you trust its author"
        )
    before = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    add_adapter(model, folder, config.path)
    places: dict[int, list[str]] = {}  # names of each new tensor, which has several if it is tied
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in before:
            places.setdefault(id(tensor), []).append(name)
    tensors = {name_in_model(name): tensor for name, tensor in load_peft_weights(folder, device="cpu").items()}
    try:
        result = set_peft_model_state_dict(model, tensors, ADAPTER_NAME)
    except KeyError as error:  # a whole module that the adapter trained
        raise _does_not_fit(config.path, f"it lacks {error.args[0]}") from error
    except RuntimeError as error:  # torch names the tensor and both shapes
        raise _does_not_fit(config.path, one_line(error)) from error
    if result.unexpected_keys:
        raise _does_not_fit(config.path, f"the base model has no place for {named(result.unexpected_keys)}")
    missing = set(result.missing_keys)
    empty = [names[0] for names in places.values() if missing.issuperset(names)]
    if empty or not tensors:
        raise _does_not_fit(config.path, f"it lacks {named(empty)}" if empty else "it has no tensors")


def _check_lora(config: LoraConfig, path: str) -> None:
    if config.alora_invocation_tokens is not None:
        raise UserError(
            f"the adapter {path} is an aLoRA, which acts only behind certain tokens and is not supported; set "
            f"model.path to another adapter"
        )
    if str(config.init_lora_weights).startswith("pissa_niter"):
        raise UserError(
            f"the adapter {path} was initialised with {config.init_lora_weights}, which changes the base model at "
            f"random at each load; convert it with peft's path_initial_model_for_weight_conversion, or merge it"
        )


def _does_not_fit(path: str, cause: str) -> UserError:
    return UserError(
        f"the adapter {path} does not fit its base model: {cause}; set base_model_name_or_path in its "
        f"adapter_config.json to the model that it was trained with, or save adapter and model merged"
    )
