"""Small trainings that are recorded, and the rows that a build would make of the same examples."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorif_core.corpus.batches import collate
from lorif_core.corpus.tokenise import Example
from lorif_core.gradients.extract import ExtractedBatch, Extractor
from lorif_core.lifecycle.plan import projection_spec
from lorif_core.model.loading import prepare_model
from lorif_core.recording.journal import Journal, Recording
from lorif_core.recording.recorder import Recorder
from lorif_core.recording.training_batch import content_key
from lorif_core.spec import CodeSpec
from tests.models import random_examples

SMALL: dict[str, Any] = {"projection": {"calibration_examples": 8}}
EXACT: dict[str, Any] = {**SMALL, "code": {"kind": "rank", "rank": 4, "dtype": "float32"}}
Loss = Callable[[torch.nn.Module, dict[str, torch.Tensor]], torch.Tensor]


def texts(count: int, seed: int = 0) -> list[Example]:
    """Examples without masked tokens, all different."""
    return [
        Example(example.example_id, row, example.input_ids, example.input_ids.copy(), None, "")
        for row, example in enumerate(random_examples(count, seed))
    ]


def corpus_of(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """The examples as records of a corpus with a column of tokens."""
    return [{"id": e.example_id, "tokens": e.input_ids.tolist(), "labels": e.labels.tolist()} for e in examples]


COLUMNS = {"tokens": "tokens", "labels": "labels", "id": "id", "max_length": 64}


def padded(examples: Sequence[Example], *, left: bool = False) -> dict[str, torch.Tensor]:
    """A batch of rows with a mask."""
    batch = collate(examples, list(range(len(examples))))
    ids, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
    mask = (torch.arange(ids.shape[1])[None] < torch.from_numpy(batch.lengths)[:, None]).long()
    if left:
        shift = [ids.shape[1] - int(length) for length in batch.lengths]
        ids, labels, mask = (
            torch.stack([row.roll(by) for row, by in zip(rows, shift, strict=True)])
            for rows in (ids, labels, mask)
        )
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def batches_of(examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
    for start in range(0, len(examples), size):
        yield list(examples[start : start + size])


def model_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss that the model returns: a mean over the scored tokens."""
    return model(**batch).loss


def train(
    model: torch.nn.Module,
    batches: Sequence[dict[str, torch.Tensor]],
    recorder: Recorder | None = None,
    *,
    rate: float = 0.0,
    loss: Loss = model_loss,
    accumulate: int = 1,
    first: int = 0,
) -> None:
    """A plain loop, from batch number `first` on."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for number, batch in list(enumerate(batches))[first:]:
        (loss(model, batch) / accumulate).backward()
        if (number + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def recorded(folder: Path, **settings: Any) -> dict[str, Any]:
    """Arguments of `record` for an index in a folder; nothing is published, because no model is saved."""
    return {"index": folder / "index", "checkpoint": folder / "none", "model": {"layers": "all"}, **settings}


def journal_rows(folder: Path) -> tuple[Journal, Recording, dict[bytes, list[dict[str, Any]]]]:
    """The rows of a journal that were not undone, by the key of their example, in the order of steps."""
    from lorif_core.config import StorageConfig

    journal = Journal(str(folder / "index"), StorageConfig())
    recording = journal.current()
    assert recording is not None
    rows: dict[bytes, list[dict[str, Any]]] = {}
    for piece in journal.pieces(recording):
        table = journal.read_rows(recording, piece)
        valid = recording.are_valid(journal.attempt_of(piece), table.column("step").to_numpy())
        for row, is_valid in zip(table.to_pylist(), valid, strict=True):
            if is_valid:
                rows.setdefault(row["key"], []).append(row)
    for of_example in rows.values():
        of_example.sort(key=lambda row: row["step"])
    return journal, recording, rows


def built_rows(model: torch.nn.Module, recorder: Recorder, examples: Sequence[Example]) -> ExtractedBatch:
    """What a build makes of the examples with the whitening of the recording; it freezes the model."""
    whitening, config = recorder._whitening, recorder._settings.config
    assert whitening is not None
    projection = projection_spec(config.projection)
    code: CodeSpec = recorder._layout.code
    extractor = Extractor(prepare_model(model), recorder._tracked.layers, projection, code, whitening.roots)
    return extractor.extract(collate(examples, list(range(len(examples)))))


def differing(
    rows: dict[bytes, list[dict[str, Any]]], built: ExtractedBatch, examples: Sequence[Example], recorder: Recorder
) -> dict[str, float]:
    """The largest relative difference of losses, the share of examples that have no row, and by example, sorted,
    the relative differences of what the codes decode to.
    """
    layout = recorder._layout
    worst: dict[str, Any] = {"losses": 0.0, "missing": 0.0, "gradients": []}
    for number, example in enumerate(examples):
        found = rows.get(content_key(example.input_ids, example.labels))
        if not found:
            worst["missing"] += 1 / len(examples)
            continue
        codes = np.asarray(found[-1]["codes"], built.codes.dtype), built.codes[number]
        scales = np.asarray(found[-1]["scales"], np.float32), built.scales[number]
        mine, theirs = (
            torch.cat([
                layout.decode(torch.from_numpy(c[None]), torch.from_numpy(s[None]), layer)
                for layer in range(len(layout.slots))
            ], dim=1)
            for c, s in zip(codes, scales, strict=True)
        )  # fmt: skip
        worst["gradients"].append(float((mine - theirs).norm() / theirs.norm()))
        loss = float(built.losses[number])
        worst["losses"] = max(worst["losses"], abs(found[-1]["loss"] - loss) / loss)
    worst["gradients"].sort()
    return worst
