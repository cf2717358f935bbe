"""The loss of each token of a text, beside that of the model's own first choice in its place.

Shapes: T tokens, N scored tokens of a chunk, H hidden, V vocabulary.
"""

from collections.abc import Callable

import numpy as np
import torch

from lorif_core.model.head import inner_model, logits_function
from lorif_core.model.loading import LoadedModel
from lorif_core.spec import MASKED

_CHUNK_BYTES = 128 * 2**20  # of float32 logits


@torch.no_grad()
def token_losses(loaded: LoadedModel, input_ids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the tokens of a text and of the model's first choices, (T,) float64 each; NaN if not scored.

    One forward pass. Of the usual heads, all logits are never in memory at once.

    Args:
        loaded: the model.
        input_ids: (T,) the tokens.
        labels: (T,) targets, -100 where not scored.
    """
    positions = np.flatnonzero(labels[1:] != MASKED)
    losses, first = np.full((2, len(labels)), np.nan)
    ids = torch.from_numpy(input_ids[None].astype(np.int64)).to(loaded.device)
    rows, logits_of = _before_logits(loaded, ids)
    size = max(1, _CHUNK_BYTES // 4 // loaded.head.width)
    for start in range(0, len(positions), size):
        chunk = positions[start : start + size]
        logits = logits_of(rows[torch.from_numpy(chunk).to(rows.device)])
        wide_NV = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
        targets = torch.from_numpy(labels[chunk + 1].astype(np.int64)).to(wide_NV.device)
        losses[chunk + 1] = -wide_NV.gather(1, targets[:, None])[:, 0].double().numpy(force=True)
        first[chunk + 1] = -wide_NV.amax(dim=1).double().numpy(force=True)
    return losses, first


def _before_logits(
    loaded: LoadedModel, ids: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Rows (T, H or V), and a function from some of them to their logits."""
    if not (loaded.head.is_linear or loaded.head.is_tokenwise):
        return loaded.model(input_ids=ids, use_cache=False).logits[0], lambda logits_NV: logits_NV
    output = inner_model(loaded.model)(input_ids=ids, use_cache=False)
    if loaded.head.is_tokenwise and not loaded.head.is_linear:
        return output.last_hidden_state[0], logits_function(loaded.model, output)
    head = loaded.model.get_output_embeddings()
    return output.last_hidden_state[0], lambda hidden_NH: head(hidden_NH.to(head.weight.device))
