"""Invariant: each process of a distributed training records its own batches, and all use the same whitening."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from tests.models import llama, scaled
from tests.unit.recording.trainings import (
    COLUMNS,
    EXACT,
    batches_of,
    built_rows,
    corpus_of,
    differing,
    journal_rows,
    padded,
    recorded,
    texts,
    train,
)

EXAMPLES = texts(32)
PROCESSES = 2


def wrapped(kind: str) -> Any:
    model = scaled(llama())
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (PROCESSES,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train_one_of_two(number: int, folder: str, kind: str) -> None:
    """A process of the training, which sees every second batch."""
    from lorif_core.recording.record import record

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=PROCESSES)
    try:
        model = wrapped(kind)
        batches = [padded(batch) for batch in batches_of(EXAMPLES, 4)][number::PROCESSES] * 2
        with record(
            model, **recorded(Path(folder), corpus=corpus_of(EXAMPLES), columns=COLUMNS, **EXACT)
        ) as recorder:
            train(model, batches, recorder)
        assert recorder.stopped is None, recorder.stopped
        if kind == "ddp" and number == 0:
            rows = journal_rows(Path(folder))[2]
            torch.save(
                differing(rows, built_rows(model.module, recorder, EXAMPLES), EXAMPLES, recorder),
                f"{folder}/found",
            )
        assert recorder._whitening is not None
        Path(folder, f"name-{number}").write_text(recorder._whitening.name)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_record_all_examples(kind: str, tmp_path: Path) -> None:
    multiprocessing.spawn(train_one_of_two, (str(tmp_path), kind), nprocs=PROCESSES)
    journal, recording, rows = journal_rows(tmp_path)
    assert len(rows) == len(EXAMPLES)
    assert {piece.split("-")[2] for piece in journal.pieces(recording)} == {"0000", "0001"}
    assert (tmp_path / "name-0").read_text() == (tmp_path / "name-1").read_text()
    if kind == "ddp":
        found = torch.load(tmp_path / "found")
        assert found["missing"] == 0 and found["gradients"][-1] < 2e-4, found
