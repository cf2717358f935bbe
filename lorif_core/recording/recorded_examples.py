"""The examples of a recording: why one gets no row, and what training saw as a corpus."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from lorif_core.config import Config
from lorif_core.corpus.in_memory import store_records
from lorif_core.corpus.tokenise import Example
from lorif_core.lifecycle.index_shard import NO_SCORED_TOKEN
from lorif_core.lifecycle.removal import REMOVED, Removals
from lorif_core.recording.journal import Journal, Recording
from lorif_core.recording.sightings import Sighting, Sightings

NOT_RECORDED = "no row was recorded during training"


def reason_against(example: Example, seen: Sequence[Sighting], removals: Removals) -> str | None:
    """Why an example gets no row; None if it gets one."""
    if removals.has(example.example_id, example.content_hash):
        return REMOVED
    if example.fault is not None:
        return example.fault
    if example.scored == 0:
        return NO_SCORED_TOKEN
    return seen[-1].fault if seen else NOT_RECORDED


def with_recorded_corpus(config: Config, journal: Journal, recording: Recording, sightings: Sightings) -> Config:
    """CONFIG whose corpus is what training saw, if the recording has ids instead of a corpus."""
    if recording.ids is None:
        return config
    latest: dict[str, tuple[int, Any, Any]] = {}
    for piece in sightings.pieces:
        table = journal.read_rows(recording, piece, ["id", "step", "tokens", "labels"])
        valid = recording.are_valid(journal.attempt_of(piece), table.column("step").to_numpy())
        for row in table.filter(pa.array(valid)).to_pylist():
            if row["id"] not in latest or latest[row["id"]][0] <= row["step"]:
                latest[row["id"]] = row["step"], row["tokens"], row["labels"]
    names = sorted(latest)
    records = pa.table(
        {
            "id": pa.array(names, pa.string()),
            "tokens": pa.array([latest[name][1] for name in names], pa.list_(pa.int32())),
            "labels": pa.array([latest[name][2] for name in names], pa.list_(pa.int32())),
        }
    )
    longest = max((len(tokens) for _, tokens, _ in latest.values()), default=2)
    section: dict[str, Any] = {
        "uri": store_records(records, config.index, config.storage), "tokens": "tokens", "labels": "labels",
        "id": "id", "max_length": max(longest, 2), "store_text": config.corpus.store_text,
    }  # fmt: skip
    return config.model_copy(update={"corpus": type(config.corpus)(**section)})
