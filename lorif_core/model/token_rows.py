"""Which rows of a layer's tensor belong to which example of a batch."""

from math import prod

import torch


def rows_per_example(shape: torch.Size, batch: int, tokens: int) -> int | None:
    """Rows of each example in a tensor (..., features) that has them example by example; None if it does not show.

    The first size is the batch, as in (B, T, d), (B, heads, T, d) or (B, d), or rows are flat, as in (B T, d).
    Sizes of 1 may stand anywhere.
    """
    leading = shape[:-1]
    if leading and leading[0] == batch:
        return prod(leading[1:])
    sizes = [size for size in leading if size != 1]
    return tokens if sizes in ([batch * tokens], [batch, tokens]) else None
