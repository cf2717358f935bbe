"""Invariant: a build in one process makes the index that `lorif build` makes of the same corpus."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

import lorif_core as lc
from flows.build import build
from lorif_core.lifecycle.local_build import build_here
from tests.integration.conftest import MakeConfig
from tests.integration.growing import codes_of, metadata_of

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")

QUERIES = ["the cat sees", "the dog runs and runs"]
SETTINGS: dict[str, dict[str, Any]] = {
    "woodbury": {},
    "whitened": {
        "projection": {"kind": "random", "factor": 4, "whiten": True},
        "code": {"kind": "cut", "rank": 4, "dtype": "sign"},
        "curvature": {"kind": "none"},
    },
}


@pytest.fixture(autouse=True)
def as_many_threads_as_a_worker() -> Iterator[None]:
    """Sums depend on the number of threads in their last bits; the one worker has all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(ray.cluster_resources()["CPU"]))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("settings", SETTINGS)
def test_rows_curvature_and_scores_are_the_same(settings: str, make_config: MakeConfig, tmp_path: Path) -> None:
    here = make_config(tmp_path / "here", **SETTINGS[settings])
    there = make_config(tmp_path / "there", **SETTINGS[settings])
    mine, theirs = build_here(here), build(there)
    assert (mine.rows, mine.tokens, mine.spec) == (theirs.rows, theirs.tokens, theirs.spec)
    assert mine.skipped_json == theirs.skipped_json and mine.coverage_json == theirs.coverage_json
    ids, scores = lc.open_index(here.index).scores(QUERIES)
    expected_ids, expected = lc.open_index(there.index).scores(QUERIES)
    assert ids == expected_ids
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert codes_of(here) == codes_of(there) and metadata_of(here) == metadata_of(there)


def test_either_goes_on_with_the_index_of_the_other(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path / "index")
    shown = list[int]()
    monkeypatch.setattr("tasks.publish.show_generation", lambda *values: shown.append(values[-1].generation))
    assert build_here(config).generation == 1
    for _ in range(2):
        assert build(config).generation == 1, "nothing has changed"
    assert build_here(config).generation == 1 and not shown, "only a published generation is shown"
