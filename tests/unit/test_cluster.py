"""Invariant: workers are only asked for where they fit on a node; one that does not would wait forever."""

import pytest

from tasks.cluster import _slots

NODES = [{"CPU": 6.0}, {"CPU": 6.0}, {"CPU": 16.0, "GPU": 2.0}]


@pytest.mark.parametrize(
    ("cpus_each", "gpus_each", "expected"),
    [(4, 0.0, 6), (6, 0.0, 4), (4, 1.0, 2), (4, 0.5, 4), (16, 1.0, 1), (17, 0.0, 0)],
)
def test_slots_count_what_fits_on_each_node(cpus_each: int, gpus_each: float, expected: int) -> None:
    assert _slots(NODES, cpus_each, gpus_each) == expected
