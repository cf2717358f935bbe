"""Loads the weights of a full model, and refuses a model of which some weights are random or not numbers.

transformers fills what a checkpoint lacks with random numbers, which differ at each load.
"""

import re
import traceback
from collections.abc import Collection, Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.loading_report import LoadStateDictInfo

from lorif_core.errors import UserError
from lorif_core.formatting import listed
from lorif_core.model.checkpoint import Checkpoint
from lorif_core.model.placement import placement

_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch.compile, FSDP, checkpoint
WRAPPERS = {
    r"^(?:module\.|_orig_mod\.)+": "",  # DataParallel and torch.compile of the whole model
    **{rf"{name}\.": "" for name in _WRAPPED},
}
"""Names that a wrapper of the training adds to those of tensors, as regexes, and what replaces them."""

ADAPTER_NAME = "default"
"""Name of an adapter in the model that it was added to."""

_LISTED = 3
_LAST_SEGMENT = re.compile(r"(?:^|\.)[^.]+$")


def load_full_model(checkpoint: Checkpoint, device: str | None = None) -> Any:
    """Load a model that is not an adapter; names of wrappers are removed from its tensors.

    Args:
        checkpoint: its checkpoint.
        device: where its weights go, as in `placement`.

    Raises:
        UserError: a tensor is missing, has another shape, cannot be converted, or belongs to a part of the model
            that has no place for it; the message names it.
    """
    config = checkpoint.config
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            checkpoint.path_with_weights(),
            dtype=config.dtype,
            use_safetensors=None if config.allow_pickle else True,
            **placement(config, device),
            key_mapping=WRAPPERS,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except RuntimeError as error:
        failed = _failed_conversions(error)
        if not failed:
            raise
        raise UserError(
            f"the weights of {config.path} do not fit its config.json: {named(failed)} cannot be made of the "
            f"tensors in the checkpoint; save the checkpoint again, or correct its config.json"
        ) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            f"{config.path} is an adapter, whose tensors cannot be checked there; download it into a folder and "
            f"set model.path to the folder"
        )
    _check_complete(model, info, config.path)
    # transformers would put the names of wrappers back when it saves the model
    model._weight_conversions = [
        rule for rule in model._weight_conversions if rule.source_patterns[0] not in WRAPPERS
    ]
    return model


def _check_complete(model: Any, info: dict[str, Any], path: str) -> None:
    if info["mismatched_keys"]:
        shapes = [f"{name} ({_shape(a)} instead of {_shape(b)})" for name, a, b in sorted(info["mismatched_keys"])]
        raise UserError(
            f"the weights of {path} do not fit its config.json: {named(shapes)}; correct config.json, or save "
            f"the checkpoint again"
        )
    unknown = sorted(info["unexpected_keys"])
    if info["missing_keys"]:
        others = f"; the model does not know {named(unknown)}, which the checkpoint has" if unknown else ""
        raise UserError(
            f"the checkpoint {path} lacks weights of {type(model).__name__}, which "
            f"would be random numbers: {named(info['missing_keys'])}{others}; save the whole model again"
        )
    homeless = [name for name in unknown if _has_owner(model, name)]
    if homeless:
        raise UserError(
            f"the checkpoint {path} has weights for which {type(model).__name__} has no place: "
            f"{named(homeless)}; correct config.json so that the model uses them, or remove them"
        )


def check_finite(model: torch.nn.Module, path: str) -> None:
    """Raise UserError for a weight that is not finite, or a stored buffer with NaN; one pass over all weights."""
    faulty = {name: ~torch.isfinite(_extremes(weight)).all() for name, weight in model.named_parameters()}
    faulty |= {name: torch.isnan(_extremes(buffer)).any() for name, buffer in _stored_buffers(model)}
    # a GPU goes through all weights before the first answer is awaited
    not_finite = [name for name, is_faulty in faulty.items() if is_faulty]
    if not_finite:
        raise UserError(
            f"weights of {path} are not finite numbers: {named(not_finite)}; save the "
            f"checkpoint again, or set another model.dtype if they are too large for this one"
        )


def name_in_model(name: str) -> str:
    """The name of a tensor without the prefix of peft and without those of wrappers."""
    name = name.removeprefix("base_model.model.")
    for pattern, replacement in WRAPPERS.items():
        name = re.sub(pattern, replacement, name)
    return name


def without_wrappers(name: str) -> str:
    """The name of a module of a model in training without those of wrappers inside of it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def named(names: Collection[str]) -> str:
    """The first names in order, and how many more there are."""
    return listed(sorted(names), _LISTED)


def _extremes(tensor: torch.Tensor) -> torch.Tensor:
    """(2,) smallest and largest value, both NaN if any value is; zeros for integers and for no values."""
    if not tensor.is_floating_point() or not tensor.numel():
        return torch.zeros(2)
    if tensor.dtype.itemsize == 1:  # torch compares no numbers of 8 bits
        tensor = tensor.to(torch.bfloat16)
    return torch.stack(torch.aminmax(tensor.detach()))


def _stored_buffers(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def _has_owner(model: Any, name: str) -> bool:
    """Whether a tensor is named like one of a module that has weights of its own, such as the bias of a Linear."""
    owner = _LAST_SEGMENT.sub("", name)
    for path in (owner, f"{model.base_model_prefix}.{owner}"):
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        if owner and any(True for _ in module.parameters(recurse=False)):
            return True
    return False


def _failed_conversions(error: RuntimeError) -> list[str]:
    """Names of the weights that transformers could not convert; its error has them only in a log and a frame."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        info = frame.f_locals.get("loading_info")
        if isinstance(info, LoadStateDictInfo):
            return list(info.conversion_errors)
    return []


def _shape(size: Collection[int]) -> str:
    return " x ".join(str(length) for length in size)
