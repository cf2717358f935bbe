"""Checks on short random texts that a loaded model is causal: texts are batched without an attention mask."""

from typing import Any

import torch

from lorif_core.errors import UserError
from lorif_core.model.head import is_close, rounding

_TEXTS, _TOKENS, _PADDING = 4, 13, 7  # no multiple of a chunk, as texts are
_MOST_IDS = 1000
_NEGLIGIBLE = 1e-6
_MANY = 0.2
_SWITCHES = ("is_decoder", "causal")
"""Names that configs have for the switch between looking at all tokens and at earlier ones."""


def probe_ids(model: Any, texts: int, length: int) -> torch.Tensor:
    """(texts, length) int64 random ids of ordinary tokens, the same at each call, on the embedding's device."""
    embedding = model.get_input_embeddings().weight
    ids = torch.tensor(ordinary_ids(model.config, len(embedding)))
    picks = torch.randint(len(ids), (texts, length), generator=torch.Generator().manual_seed(0))
    return ids[picks].to(embedding.device)


def ordinary_ids(config: Any, size: int) -> list[int]:
    """Up to 1,000 ids below `size` of tokens that stand for themselves; all ids if there are hardly any."""
    special = _special_ids(config.to_dict())
    ordinary = [token for token in range(min(size, _MOST_IDS)) if token not in special]
    return ordinary if len(ordinary) > 1 else list(range(size))


def check_causal(model: Any, path: str, max_positions: int | None) -> None:
    """Reject a model whose output at a token depends on later tokens, on padding behind, or on the batch.

    Args:
        model: frozen, in evaluation mode.
        path: `model.path`, for messages.
        max_positions: longest sequence that the model takes; None for any.

    Raises:
        UserError: the model looks ahead, or padding or the batch changes its output.
    """
    total = min(_TOKENS + _PADDING, max_positions or _TOKENS + _PADDING)
    length = max(1, total * _TOKENS // (_TOKENS + _PADDING))
    early = length // 2
    tolerance = rounding(model)
    ids = probe_ids(model, _TEXTS, length)
    ids[1::2, :early] = ids[0::2, :early]  # pairs of texts that differ in their late tokens only
    with torch.no_grad():
        alone = torch.cat([model(input_ids=text[None], use_cache=False).logits for text in ids])
    padded = torch.cat([ids, ids.new_zeros(len(ids), total - length)], dim=1)
    batched, late_share = _logits_and_late_share(model, padded, early)
    if late_share > _NEGLIGIBLE or _moved(alone[1::2, :early], alone[0::2, :early], tolerance):
        raise UserError(
            f"the model {path} ({type(model).__name__}) looks ahead: its output for a token changes with the "
            f"tokens behind it, so it is not a causal language model; {_hint(model.config)}"
        )
    if _moved(batched[:, :length], alone, tolerance):
        raise UserError(
            f"the output of the model {path} ({type(model).__name__}) for a text changes with the padding behind "
            f"it, or with the other texts of a batch, so gradients would depend on the batch; use another model"
        )


def _logits_and_late_share(model: Any, ids_BT: torch.Tensor, early: int) -> tuple[torch.Tensor, float]:
    """Logits (B, T, V), and how much the early ones depend on the embeddings of later tokens.

    The gradient shows a dependence below the rounding of the logits, as an untrained model has it. The share is
    the largest gradient of a late token over the largest of all.
    """
    leaves: list[torch.Tensor] = []

    def record(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # the model may change it in place, which a leaf does not allow

    handle = model.get_input_embeddings().register_forward_hook(record)
    try:
        with torch.enable_grad():
            logits = model(input_ids=ids_BT, use_cache=False).logits
            likelihood = torch.logsumexp(logits[:, :early].float(), dim=-1).sum()
    finally:
        handle.remove()
    leaves = [leaf for leaf in leaves if leaf.shape[:2] == ids_BT.shape]
    if not leaves or not likelihood.requires_grad:
        return logits.detach(), 0.0
    gradients = torch.autograd.grad(likelihood, leaves, allow_unused=True)
    sizes = [
        gradient.abs().amax(dim=(0, *range(2, gradient.dim()))) for gradient in gradients if gradient is not None
    ]
    largest = max((float(size.max()) for size in sizes), default=0.0)
    late = max((float(size[early:].max()) for size in sizes), default=0.0)
    return logits.detach(), late / largest if largest else 0.0


def _moved(actual_BTV: torch.Tensor, expected_BTV: torch.Tensor, tolerance: float) -> bool:
    """Whether logits differ by more than rounding: at some position in every text, or at many positions.

    A few may differ, because rounding can send a token to another expert, or change what a sparse attention
    selects.
    """
    B, T, _ = expected_BTV.shape
    if T == 0:
        return False
    moved = torch.tensor(
        [[not is_close(actual_BTV[b, t], expected_BTV[b, t], tolerance) for t in range(T)] for b in range(B)]
    )
    return bool(moved.all(dim=0).any() or moved.float().mean() > _MANY)


def _hint(config: Any) -> str:
    switch = next((name for name in _SWITCHES if getattr(config, name, None) is False), None)
    if switch is None:
        return "use another model"
    return f"set {switch}=true in its config.json if it was trained so, or use another model"


def _special_ids(config: dict[Any, Any]) -> set[int]:
    """Ids in a config that may stand for more than a token, such as an image."""
    special: set[int] = set()
    for name, value in config.items():
        if isinstance(value, dict):
            special |= _special_ids(value)
        elif str(name).endswith(("token_id", "token_index")):
            special |= {i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)}
    return special
