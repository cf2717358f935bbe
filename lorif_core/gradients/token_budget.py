"""Runs examples in the largest batches that fit into memory.

The first batches of a worker are small. Each that leaves room doubles the size of the next. If memory runs out
later, the same examples run again in smaller batches. So nothing is computed to find the size.
"""

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch

from lorif_core.corpus.batches import fitting, longest_first
from lorif_core.errors import LorifError
from lorif_core.gradients.memory_gauge import MemoryGauge, memory_gauge
from lorif_core.out_of_memory import is_out_of_memory

log = logging.getLogger(__name__)

_REFUSALS = 2  # the first batch of a process also pays for libraries and their buffers


class TokenBudget:
    """The size of batches for the life of a worker.

    Args:
        tokens: largest number of tokens of a batch, padding included; `auto` takes what fits into memory.
        longest: tokens of the longest example that there may be, of which every batch has at least one.
        devices: devices of the model's layers.

    Attributes:
        tokens: the largest number of tokens of the next batch.
    """

    def __init__(self, tokens: Literal["auto"] | int, longest: int, devices: Iterable[torch.device] = ()) -> None:
        self.tokens = longest if tokens == "auto" else tokens
        self._gauge: MemoryGauge | None = memory_gauge(devices) if tokens == "auto" else None
        self._refusals = 0

    def run(
        self,
        lengths: Sequence[int],
        step: Callable[[list[int]], object],
        *,
        most_rows: int | None = None,
        restart: Callable[[], None] | None = None,
    ) -> None:
        """Run all examples in batches, the longest first. A batch for which memory runs out is halved.

        Args:
            lengths: number of tokens of each example.
            step: runs a batch, given the indices of its examples. It is called again after it ran out of memory.
            most_rows: largest number of examples of a batch.
            restart: undoes all steps, if one that fails leaves traces; all examples run again then.

        Raises:
            Exception: memory ran out for one example alone; the error is that of the step.
        """
        order, done = longest_first(lengths), 0
        while done < len(order):
            rows = fitting(lengths[order[done]], self.tokens)
            indices = order[done : done + (rows if most_rows is None else min(rows, most_rows))]
            size = len(indices) * lengths[indices[0]]
            cause = self._attempt(indices, size, step)
            if cause is None:
                done += len(indices)
            else:
                self._shrink(size, cause)
                if restart is not None:
                    restart()
                    done = 0

    def _attempt(self, indices: list[int], size: int, step: Callable[[list[int]], object]) -> str | None:
        """Run a batch; returns the text of the error if memory ran out and fewer examples may fit."""
        gauge = self._gauge
        if gauge is not None:
            gauge.start()
        try:
            step(indices)
        except Exception as error:
            if len(indices) == 1 or isinstance(error, LorifError) or not is_out_of_memory(error):
                raise
            return " ".join(str(error).split()) or type(error).__name__
        if gauge is not None and 2 * size > self.tokens:
            self._grow(gauge, size)
        return None

    def _grow(self, gauge: MemoryGauge, size: int) -> None:
        """Double the next batch if it will fit, given a batch that did."""
        doubled = 2 * self.tokens
        if doubled <= gauge.most_tokens and gauge.headroom() >= doubled / size:
            self.tokens, self._refusals = doubled, 0
            return
        self._refusals += 1
        if doubled > gauge.most_tokens or self._refusals == _REFUSALS:
            self._gauge = None

    def _shrink(self, size: int, cause: str) -> None:
        self.tokens, self._gauge = size // 2, None
        log.warning(
            "memory ran out with a batch of %d tokens, so batches have at most %d from now on (%s)",
            size, self.tokens, cause,
        )  # fmt: skip
        gc.collect()  # the error is gone, and with it what its frames held
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
