"""Invariant: rows that a restore has undone do not count, nor do notes, and shards are read in groups."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from lorif_core.config import StorageConfig
from lorif_core.recording.journal import BEFORE_METRIC, Journal, Recording
from lorif_core.recording.sightings import grouped, read_sightings


def recording() -> Recording:
    return Recording("run", {}, [], None, "last").with_attempt(0)


def test_rows_above_the_step_of_a_later_attempt_are_undone() -> None:
    restored = recording().with_attempt(5).with_attempt(3)
    steps = np.arange(1, 9)
    assert steps[restored.are_valid(0, steps)].tolist() == [1, 2, 3]
    assert steps[restored.are_valid(1, steps)].tolist() == [1, 2, 3], "it made none below 6"
    assert steps[restored.are_valid(2, steps)].tolist() == list(range(1, 9))


def test_notes_say_what_training_saw_and_are_no_rows(tmp_path: Path) -> None:
    journal, run = Journal(str(tmp_path), StorageConfig()), recording()
    rows = [(b"early", 1, BEFORE_METRIC, 9), (b"both", 1, BEFORE_METRIC, 5), (b"both", 3, None, 5)]
    rows += [(b"both", 4, None, 5), (b"bad", 4, "the gradient is not finite", 7)]
    columns = dict(zip(("key", "step", "fault", "length"), zip(*rows, strict=True), strict=True))
    journal.write_rows(run, 0, 0, 0, pa.table({name: pa.array(list(values)) for name, values in columns.items()}))
    found = read_sightings(journal, run)
    assert (found.first_step, found.last_step, found.rows, found.longest, found.most) == (3, 4, 3, 9, 2)
    for only_last, expected in ((True, [4]), (False, [3, 4])):
        assert [row.step for row in found.of(b"both", only_last=only_last)] == expected
        assert [row.fault for row in found.of(b"early", only_last=only_last)] == [BEFORE_METRIC]
    assert not found.of(b"never", only_last=True)


def test_a_row_knows_all_of_its_steps() -> None:
    run = recording()
    names = [run.row_checkpoint(steps) for steps in ((7,), (3, 7), ())]
    assert names == ["recorded:run/step-7", "recorded:run/steps-3,7", "recorded:run/end"]


def test_groups_stay_within_the_limit_unless_one_count_is_above_it() -> None:
    assert list(grouped([3, 3, 9, 1, 1], 6)) == [range(2), range(2, 3), range(3, 5)]
    assert list(grouped([], 6)) == []
