"""Memory and time of the loss of a vocabulary of 49,152, forward and backward, with all logits and in chunks.

    python -m benchmarks.loss_head [--out benchmarks/results/loss-head.json]

The shapes are those of SmolLM2-135M: hidden states of 576 numbers, once with a linear head and once with one that
caps its logits. A process of its own measures each case.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.run_record import write_result
from lorif_core.free_memory import peak_memory, reset_peak, resident_memory
from lorif_core.model.loss import HeadLoss, head_loss, losses_by_token, other_head_loss, token_losses

_HIDDEN, _VOCABULARY, _CAP = 576, 49_152, 30.0
_MOST_WHOLE = 2048  # tokens whose logits are all in memory: 6 GB would be needed for 8,192
_REPETITIONS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loss-head.json"))
    parser.add_argument("--case", nargs=3, metavar=("HEAD", "WAY", "TOKENS"))
    arguments = parser.parse_args()
    if arguments.case:
        head, way, tokens = arguments.case
        print(*measure(head, way, int(tokens)))
        return
    cases = []
    for head in ("linear", "capped"):
        for way, tokens in (("whole", _MOST_WHOLE), ("chunks", _MOST_WHOLE), ("chunks", 8192)):
            command = [sys.executable, "-m", "benchmarks.loss_head", "--case", head, way, str(tokens)]
            seconds, mebibytes = subprocess.check_output(command, text=True).split()
            cases.append(
                {
                    "head": head,
                    "way": way,
                    "tokens": tokens,
                    "seconds": float(seconds),
                    "peak_mib": float(mebibytes),
                }
            )
            print(cases[-1])
    write_result(arguments.out, {"hidden": _HIDDEN, "vocabulary": _VOCABULARY, "threads": 1, "cases": cases})


def measure(head: str, way: str, tokens: int) -> tuple[float, float]:
    """Seconds, and MiB of memory at the peak beyond what was there before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden, labels = torch.randn(8, tokens // 8, _HIDDEN), torch.randint(0, _VOCABULARY, (8, tokens // 8))
    weight = 0.05 * torch.randn(_VOCABULARY, _HIDDEN)
    seconds = peak = float("inf")
    for _ in range(_REPETITIONS):
        before = resident_memory() or 0
        reset_peak()
        started = time.perf_counter()
        loss(head, way, hidden, weight, labels)
        seconds = min(seconds, time.perf_counter() - started)
        peak = min(peak, ((peak_memory() or 0) - before) / 2**20)
    return round(seconds, 2), round(peak)


def loss(head: str, way: str, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> HeadLoss:
    """The loss and its gradient."""

    def logits_of(x: torch.Tensor) -> torch.Tensor:
        logits = torch.nn.functional.linear(x, weight)
        return logits if head == "linear" else _CAP * torch.tanh(logits / _CAP)

    if way == "whole":
        hidden = hidden.detach().requires_grad_()
        logits = logits_of(hidden)
        losses = token_losses(logits, labels)
        gradient = torch.autograd.grad(losses.sum(), hidden)[0]
        return HeadLoss(losses.detach(), gradient, losses_by_token(logits, labels))
    if head == "linear":
        return head_loss(hidden, weight, None, labels)
    return other_head_loss(hidden, logits_of, len(weight), labels)


if __name__ == "__main__":
    main()
