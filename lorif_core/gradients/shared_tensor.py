"""Tensors of the memory of numpy arrays."""

import warnings

import numpy as np
import torch


def shared_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor that shares the memory of an array, which may be read-only; do not write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
