"""Which linear layers to track: all, the MLPs, those that a regex finds, or a few late ones (`auto`).

Blocks of a deep model repeat one another, so bytes are better spent on good codes of few layers than on poor codes
of all, and late blocks answer better than early ones. The backward pass also ends at the first tracked layer. In
models of few blocks every MLP counts. `benchmarks/results/layers-rule.md` has the measurements behind `auto`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lorif_core.errors import UserError
from lorif_core.formatting import listed
from lorif_core.model.experts import ExpertMatrix, TrackedModule

LayerKind = Literal["attention", "mlp", "expert", "other"]
ALL, MLP, AUTO = "all", "mlp", "auto"
LATE_BLOCKS = 15
"""Largest number of blocks that `auto` takes of a deep model if nothing else is asked."""
_FEW_BLOCKS = 8
_LISTED = 40

_MLP_PATH = re.compile(
    r"(^|\.)(mlps?|shared_mlp|mlp_block|ffn?|feed_forward\w*|\w*experts?|moe)\."
    r"|(^|\.)(fc_?\d|lin\d)$|(^|\d\.)(intermediate|output)\.dense$|mixer\.(up|down)_proj$"
)
_NOT_MLP = re.compile(
    r"att(n|ention)?(\.|_)|router|(^|\.)(shared_expert_)?gate(\.|$)|norm\.mlp|hyper_connection|vision|audio|image"
)
_EXPERT = re.compile(r"(^|\.)\w*experts?\.")
_ATTENTION = re.compile(
    r"att(n|ention)|(^|\.)([qkvo]|qkv|kv_[ab]|q_[ab]|out|query|key|value)_?proj|query_key_value"
)
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen layers by name, and a sentence that says which they are and why."""

    layers: dict[str, TrackedModule]
    reason: str


def choose(
    layers: Mapping[str, TrackedModule], rule: str, width: int | None, late_blocks: int = LATE_BLOCKS
) -> Choice:
    """Choose among the linear layers of a model.

    Args:
        layers: the layers by name, in the order of the model.
        rule: `all`, `mlp`, `auto`, or a regex that is searched in the names.
        width: size of the residual stream; None if the model does not say.
        late_blocks: number of blocks that `auto` takes of a deep model, at most the last half of them.

    Raises:
        UserError: the regex is malformed, or nothing is chosen (the message lists the layers).
    """
    if rule == ALL:
        return Choice(dict(layers), f"all {len(layers)} layers")
    if rule == AUTO:
        return _few_late(layers, width, late_blocks)
    names = [name for name in layers if is_mlp(name)] if rule == MLP else _found(layers, rule)
    if not names and layers:
        found = "this model has no MLP that its names show" if rule == MLP else f"{rule!r} matches none"
        raise UserError(
            f"model.layers: {found} of the linear layers, which are {listed(list(layers), _LISTED)}; name some"
        )
    return _choice(layers, names, "the MLPs" if rule == MLP else f"those that match {rule}")


def is_mlp(name: str) -> bool:
    """Whether a linear layer is part of an MLP or of an expert, by its name."""
    return bool(_MLP_PATH.search(name)) and not _NOT_MLP.search(name)


def kind_of(name: str) -> LayerKind:
    """What a linear layer is a part of, by its name."""
    if _EXPERT.search(name):
        return "expert"
    if is_mlp(name):
        return "mlp"
    return "attention" if _ATTENTION.search(name) else "other"


def block_of(name: str) -> int | None:
    """The number of a layer's block, or None outside of blocks."""
    match = _BLOCK.search(name)
    return None if match is None else int(match.group(1))


def _few_late(layers: Mapping[str, TrackedModule], width: int | None, late_blocks: int) -> Choice:
    candidates = [name for name in layers if is_mlp(name) and block_of(name) is not None]
    kind = "the MLPs"
    if not candidates:
        candidates, kind = list(layers), "all layers, because no name shows an MLP"
    blocks = sorted({block for block in map(block_of, candidates) if block is not None})
    if len(blocks) <= _FEW_BLOCKS:
        return _choice(layers, candidates, f"{kind} of {len(blocks)} blocks, because there are few")
    half = blocks[len(blocks) // 2 :]
    count = min(late_blocks, len(half))
    chosen = [half[(2 * part + 1) * len(half) // (2 * count)] for part in range(count)]
    late = [name for name in candidates if block_of(name) in chosen]
    down = [name for name in late if _is_down(layers[name], width)]
    kind = "the down-projections" if down else kind
    return _choice(
        layers,
        down or late,
        f"{kind} of the blocks {', '.join(map(str, chosen))} of {len(blocks)}, in the last half",
    )


def _is_down(module: TrackedModule, width: int | None) -> bool:
    """Whether a layer of an MLP writes into the residual stream."""
    if isinstance(module, ExpertMatrix):
        return module.is_down
    inner, outer = layer_sizes(module)
    return outer == width != inner


def layer_sizes(module: TrackedModule) -> tuple[int, int]:
    """Input and output size of a layer; Conv1D stores its weight transposed."""
    if isinstance(module, ExpertMatrix):
        return module.sizes
    rows, cols = module.weight.shape
    return (cols, rows) if isinstance(module, torch.nn.Linear) else (rows, cols)


def _choice(layers: Mapping[str, TrackedModule], names: Sequence[str], kind: str) -> Choice:
    reason = f"{len(names)} of {len(layers)} layers: {kind} ({listed(names, _LISTED)})"
    return Choice({name: layers[name] for name in names}, reason)


def _found(layers: Mapping[str, TrackedModule], pattern: str) -> list[str]:
    regex = compile_regex("model.layers", pattern)
    return [name for name in layers if regex.search(name)]


def compile_regex(key: str, pattern: str) -> re.Pattern[str]:
    """A regex of CONFIG. Raises UserError, with the key's name, if it is malformed."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key} = {pattern!r} is not a regular expression: {error}") from None
