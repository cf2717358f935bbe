"""Invariant: the steps of a flow share workers, which live as long as steps succeed and work is there for them."""

from dataclasses import replace
from pathlib import Path

import pytest
from prefect import flow

from flows.build import build
from lorif_core.config import Config
from lorif_core.lifecycle.calibrate import calibration_sample
from lorif_core.lifecycle.indexing import IndexedRows
from lorif_core.lifecycle.plan import make_plan
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.store import Store
from tasks.calibrate import measure
from tasks.indexing import index_shards
from tasks.model_workers import ModelWorkers
from tests.integration.conftest import MakeConfig

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")


@pytest.fixture(scope="module")
def indexed(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of a whitened index."""
    config = make_config(
        tmp_path_factory.mktemp("shared") / "index", projection={"whiten": True}, curvature={"kind": "none"}
    )
    build(config)
    return config


def test_timings_tell_the_start_of_workers_from_the_steps(indexed: Config) -> None:
    timings = Store(indexed.index).latest().timings
    assert set(timings) == {"start", "calibrate", "index", "curvature"} and min(timings.values()) >= 0
    assert timings["start"] > 0 and timings["calibrate"] > 0 and timings["index"] > 0


def test_steps_share_workers_and_one_that_died_in_between_is_replaced(indexed: Config, tmp_path: Path) -> None:
    config = indexed.model_copy(update={"index": str(tmp_path / "index")})
    plan, store = make_plan(config), Store(config.index)
    sample = calibration_sample(plan.shards, 30)
    with hold_lease(config.index, config.storage, "test") as lease, ModelWorkers(config) as model_workers:
        first = measure(model_workers, plan.spec, store, lease, sample)
        started = model_workers.start_seconds
        with model_workers.step(plan.spec, 1) as workers:
            pass
        with model_workers.step(plan.spec, 1) as same:
            assert same is workers
        for worker in list(workers._workers):
            worker.host.kill()
        second = measure(model_workers, plan.spec, store, lease, sample)
        assert model_workers.start_seconds == started > 0
    assert first is not None and first == second, "the same parts give the same bits"
    store.whitenings.check(first.name)


def test_a_step_that_fails_ends_the_workers(indexed: Config) -> None:
    plan = make_plan(indexed)
    with ModelWorkers(indexed) as model_workers:
        with pytest.raises(ZeroDivisionError), model_workers.step(plan.spec, 1) as workers:
            raise ZeroDivisionError
        with model_workers.step(plan.spec, 1) as others:
            assert others is not workers


def test_nothing_starts_without_work(indexed: Config) -> None:
    @flow
    def index_again() -> tuple[IndexedRows, float]:
        plan = make_plan(indexed)
        with hold_lease(indexed.index, indexed.storage, "test") as lease, ModelWorkers(indexed) as workers:
            indexed_rows = index_shards.fn(indexed, plan, lease, False, workers)
            return indexed_rows, workers.start_seconds

    rows, start_seconds = index_again()
    assert rows.inventory.rows == 1099 and start_seconds == rows.start_seconds == 0.0


def test_a_checkpoint_that_cannot_be_loaded_is_one_error(indexed: Config, tmp_path: Path) -> None:
    plan, store = make_plan(indexed), Store(indexed.index)
    spec, sample = replace(plan.spec, checkpoint="sha256:0"), calibration_sample(plan.shards, 30)
    with (
        hold_lease(indexed.index, indexed.storage, "test") as lease,
        ModelWorkers(indexed) as model_workers,
        pytest.raises(Exception, match="checkpoint") as raised,
    ):
        measure(model_workers, spec, store, lease, sample)
    assert "\n" not in str(raised.value)
