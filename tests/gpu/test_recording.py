"""Invariant: a training is recorded although its logits move to another device, as accelerate moves them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lorif_core.recording.record import record
from tests.models import llama, scaled
from tests.unit.recording.trainings import (
    COLUMNS,
    EXACT,
    batches_of,
    corpus_of,
    journal_rows,
    padded,
    recorded,
    texts,
    train,
)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"),
]
EXAMPLES = texts(24)


@pytest.mark.parametrize(("head", "inputs"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_logits_on_another_device_than_the_head_are_recorded(head: str, inputs: str, tmp_path: Path) -> None:
    def moved(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits.to(inputs)
        return output

    def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**{key: value.to(head) for key, value in batch.items()}).loss

    model = scaled(llama()).to(head)
    model.register_forward_hook(moved)
    arguments = recorded(tmp_path, corpus=corpus_of(EXAMPLES), columns=COLUMNS, **EXACT)
    with record(model, **arguments) as recorder:
        train(model, [padded(batch) for batch in batches_of(EXAMPLES, 4)] * 2, recorder, loss=loss)
    assert recorder.stopped is None and len(journal_rows(tmp_path)[2]) == len(EXAMPLES)
