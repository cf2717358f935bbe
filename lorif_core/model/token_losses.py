"""The loss of each token of a text, beside that of the model's own first choice in its place."""

import numpy as np
import torch

from lorif_core.model.loading import LoadedModel


def token_losses(loaded: LoadedModel, input_ids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the tokens of a text and of the model's first choices, (T,) float64 each; NaN if not scored.

    One forward pass: nothing of a frozen model that is not tracked needs gradients.

    Args:
        loaded: the model.
        input_ids: (T,) the tokens.
        labels: (T,) targets, -100 where not scored.
    """
    ids, targets = (torch.from_numpy(values[None].astype(np.int64)) for values in (input_ids, labels))
    taken: list[torch.Tensor] = []
    loaded.backward(ids.to(loaded.device), targets, taken.append)
    own_T, first_T = taken[0][:, 0].double().numpy(force=True)
    return own_T, first_T
