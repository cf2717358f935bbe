"""Errors of a model's own code, which may be any, as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lorif_core.errors import LorifError, UserError
from lorif_core.out_of_memory import is_out_of_memory
from lorif_core.storage.faults import one_line


@contextmanager
def model_errors(failure: str, advice: str) -> Iterator[None]:
    """Turn an error of the model into a sentence; those of the machine, such as a lack of memory, pass through.

    Args:
        failure: the model and what it does not do.
        advice: what the user can do.

    Raises:
        UserError: the block failed.
    """
    try:
        yield
    except (LorifError, torch.AcceleratorError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{failure}: {type(error).__name__} {one_line(error)}; {advice}") from error
