"""Invariants of whitened builds: the whitening does not depend on the workers; codes take the computed bytes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect import flow

import lorif_core as lc
from flows.build import build
from lorif_core.config import Config
from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.lifecycle.plan import make_plan
from lorif_core.lifecycle.update import make_update_plan
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.store import Store
from tasks.calibrate import calibrate
from tasks.model_workers import ModelWorkers
from tests.integration.conftest import MakeConfig
from tests.integration.rows import stored_rows

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")

QUERIES = ["the cat sees it", {"prompt": "the dog ", "completion": "likes the small red bird"}]
WHITENED = {"kind": "random", "whiten": True, "factor": 2, "calibration_examples": 64}
CODES: dict[str, dict[str, Any]] = {
    "float32": {"kind": "dense", "dtype": "float32"},
    "int8": {"kind": "dense", "dtype": "int8"},
    "int4": {"kind": "dense", "dtype": "int4"},
    "sign": {"kind": "dense", "dtype": "sign"},
    "rank 3 int8": {"kind": "rank", "rank": 3, "dtype": "int8"},
    "rank 3 float32": {"kind": "rank", "rank": 3, "dtype": "float32"},
    "cut 2": {"kind": "cut", "rank": 2, "dtype": "sign"},
}


@pytest.fixture(scope="module")
def corpus(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The first rows of the corpus in three files."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = corpus_file.read_text().splitlines(keepends=True)
    for start in range(0, 600, 200):
        (folder / f"{start:03d}.jsonl").write_text("".join(lines[start : start + 200]))
    return {"uri": str(folder)}


@pytest.fixture(scope="module")
def indexes(
    make_config: MakeConfig, corpus: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Config]]:
    """One index per code over the same corpus, with the same calibration."""
    folder = tmp_path_factory.mktemp("whitened")
    configs = {}
    for name, code in CODES.items():
        config = make_config(
            folder / name, corpus=corpus, projection=WHITENED, code=code, curvature={"kind": "none"}
        )
        configs[name] = config
        build(config)
    yield configs


def scores_of(config: Config) -> dict[str, np.ndarray]:
    ids, scores = lc.open_index(config.index).scores(QUERIES)
    return dict(zip(ids, scores.T, strict=True))


def correlation(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    pairs = [np.array([scores[name] for name in sorted(scores)]) for scores in (first, second)]
    return min(np.corrcoef(pairs[0][:, q], pairs[1][:, q])[0, 1] for q in range(len(QUERIES)))


@pytest.mark.parametrize(("dtype", "least"), [("int8", 0.999), ("int4", 0.98), ("sign", 0.7)])
def test_quantised_codes_score_like_float32_codes(dtype: str, least: float, indexes: dict[str, Config]) -> None:
    assert correlation(scores_of(indexes["float32"]), scores_of(indexes[dtype])) >= least


def test_quantised_factors_score_like_float32_factors(indexes: dict[str, Config]) -> None:
    assert correlation(scores_of(indexes["rank 3 float32"]), scores_of(indexes["rank 3 int8"])) >= 0.999


@pytest.mark.parametrize("name", CODES)
def test_bytes_on_disk_equal_the_computed_bytes(name: str, indexes: dict[str, Config]) -> None:
    store = Store(indexes[name].index)
    generation = store.latest()
    layout = CodeLayout(generation.index_spec.layers, generation.index_spec.code)
    measured = store.rows.code_bytes(generation.factors_version) / generation.rows
    assert measured == pytest.approx(layout.bytes_per_example, rel=0.03)


def test_a_rebuild_keeps_the_whitening_and_other_settings_are_refused(indexes: dict[str, Config]) -> None:
    config = indexes["sign"]
    store = Store(config.index)
    before = store.latest().index_spec.projection.whitening
    assert before is not None and build(config).index_spec.projection.whitening == before
    covariances = store.whitenings.covariances(before)
    # row 7 of the corpus has no scored token
    assert covariances is not None and covariances.examples == 63
    other = config.model_copy(
        update={"projection": config.projection.model_copy(update={"calibration_examples": 32})}
    )
    with pytest.raises(UserError, match="calibration_examples"):
        build(other)
    projection = config.projection.model_copy(update={"calibration_examples": "auto"})
    automatic = config.model_copy(update={"projection": projection})
    assert make_plan(automatic).spec == make_update_plan(automatic).build.spec == store.latest().index_spec


def test_the_whitening_does_not_depend_on_the_workers(
    indexes: dict[str, Config], make_config: MakeConfig, corpus: dict[str, str], tmp_path: Path
) -> None:
    config = make_config(
        tmp_path / "index",
        corpus=corpus,
        projection=WHITENED,
        code=CODES["sign"],
        curvature={"kind": "none"},
        compute={"workers": 2},
    )

    @flow
    def calibrate_only() -> str | None:
        with hold_lease(config.index, config.storage, "test") as lease, ModelWorkers(config) as workers:
            return calibrate(config, make_plan(config), lease, workers).spec.projection.whitening

    covariances = Store(config.index).whitenings.covariances(calibrate_only())
    spec = Store(indexes["sign"].index).latest().index_spec
    expected = Store(indexes["sign"].index).whitenings.covariances(spec.projection.whitening)
    assert covariances is not None and expected is not None and covariances.tokens == expected.tokens
    for key, sums in expected.sums.items():
        assert (covariances.sums[key] - sums).norm() <= 1e-3 * sums.norm()


def test_a_missing_whitening_is_an_error(indexes: dict[str, Config]) -> None:
    store = Store(indexes["int8"].index)
    spec = store.latest().index_spec
    with pytest.raises(Exception, match="the table whitening lacks 0000000000000000"):
        store.whitenings.roots("0" * 16)
    assert replace(spec.projection, whitening=None).kind == "whitened"


def test_a_factored_query_is_part_of_the_generation(
    make_config: MakeConfig, corpus: dict[str, str], tmp_path: Path
) -> None:
    """A factored query, as in the preset `paper`, gives other scores than a dense query from the same rows."""
    dense = make_config(tmp_path / "index", corpus=corpus, code={"dtype": "float32"})
    build(dense)
    plain = scores_of(dense)
    factored = dense.model_copy(update={"query": dense.query.model_copy(update={"factored": True})})
    generation = build(factored)
    assert (
        generation.generation == 2
        and generation.newest.factored_query
        and len(stored_rows(dense)) == generation.rows
    )
    assert 0.3 < correlation(plain, scores_of(factored)) < 0.9999
    with pytest.raises(UserError, match="this index factors queries"):
        lc.open_index(factored.index).token_scores(QUERIES[0], list(plain)[:1])
    assert generation.index_spec == Store(dense.index).generations()[0].index_spec
