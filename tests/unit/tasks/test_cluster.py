"""Invariant: every requested worker fits on a node; one that does not would wait forever."""

import pytest

from tasks.cluster import _cores_each, _slots

NODES = [{"CPU": 6.0}, {"CPU": 6.0}, {"CPU": 16.0, "GPU": 2.0}]


@pytest.mark.parametrize(
    ("cpus_each", "gpus_each", "expected"),
    [(4, 0.0, 6), (6, 0.0, 4), (4, 1.0, 2), (4, 0.5, 4), (16, 1.0, 1), (17, 0.0, 0)],
)
def test_slots_count_the_workers_that_fit_on_each_node(cpus_each: int, gpus_each: float, expected: int) -> None:
    assert _slots(NODES, cpus_each, gpus_each) == expected


@pytest.mark.parametrize(
    ("cores", "expected"),
    [((6, 16), 4), ((2, 16), 2), ((0, 16), 4), ((0, 2, 8), 2), ((0,), 4)],
)
def test_a_node_without_cores_does_not_reduce_the_cores_of_a_worker(cores: tuple[int, ...], expected: int) -> None:
    """The Ray head and the node of a driver have no cores; if they counted, every core would load the model."""
    assert _cores_each([{"CPU": float(count)} if count else {} for count in cores]) == expected
