"""Invariant: every requested worker fits on a node; one that does not would wait forever."""

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from tasks.cluster import _cores_each, _gpus_each, _memory_of_a_gpu, _slots, gpus_for

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


def test_the_memory_of_a_gpu_is_asked_for_once(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later workers hold all GPUs, and nobody would answer."""
    asked = list[int]()

    class Task:
        def remote(self) -> ray.ObjectRef:
            asked.append(1)
            return ray.put(80 * 2**30)

    monkeypatch.setattr("tasks.cluster._gpu_memory", Task())
    _memory_of_a_gpu.cache_clear()
    assert [_gpus_each(weights * 10**9) for weights in (2, 140, 140)] == [1, 4, 4]
    _memory_of_a_gpu.cache_clear()
    assert len(asked) == 1


@given(st.integers(1, 10**12), st.integers(10**9, 10**12))
def test_a_model_gets_the_fewest_gpus_of_which_its_weights_take_half(weights: int, memory: int) -> None:
    gpus = gpus_for(weights, memory)
    assert weights <= gpus * memory / 2
    assert gpus == 1 or weights > (gpus - 1) * memory / 2


def test_gpus_of_published_models_on_gpus_of_80_gib() -> None:
    """1B, 8B and 70B in bfloat16."""
    assert [gpus_for(2 * parameters * 10**9, 80 * 2**30) for parameters in (1, 8, 70)] == [1, 1, 4]
