"""Invariants: every preset builds, answers and grows; rows of a preset of another version are not mixed in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lorif_core as lc
from flows.build import build
from flows.update import update
from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.model.layer_choice import is_mlp
from lorif_core.tables.store import Store

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")

FOLDED = ("compact", "balanced", "fine", "quality")
QUERIES = ["the cat sees it", {"prompt": "the dog ", "completion": "likes the small red bird"}]
VERSION_1 = {"kind": "random", "whiten": True, "factor": 2}


@pytest.fixture(scope="module")
def corpus(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the corpus in a file of a folder."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = corpus_file.read_text().splitlines(keepends=True)
    (folder / "first.jsonl").write_text("".join(lines[:200]))
    return folder


def config_of(preset: str, index: Path, corpus: Path, folder: Path, **sections: Any) -> Config:
    return parse_config(
        {
            "preset": preset,
            "index": str(index),
            "corpus": {"uri": str(corpus), "id": "id", "max_length": 64},
            "compute": {"workers": 1, "tokens_per_batch": 2048},
            "model": {"path": str(folder), **sections.pop("model", {})},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def indexes(
    corpus: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Config]]:
    """An index of each preset with folded projections."""
    folder = tmp_path_factory.mktemp("presets")
    configs = {name: config_of(name, folder / name, corpus, model_folder) for name in FOLDED}
    for config in configs.values():
        build(config)
    yield configs


def scores_of(config: Config) -> np.ndarray:
    """(rows, queries), by id."""
    ids, scores = lc.open_index(config.index).scores(QUERIES)
    return scores.T[np.argsort(ids)]


def test_more_bytes_come_closer_to_the_exact_scores(
    indexes: dict[str, Config], corpus: Path, model_folder: Path, tmp_path: Path
) -> None:
    exact = config_of(
        "quality", tmp_path / "exact", corpus, model_folder, projection={"fold": 1}, code={"dtype": "float32"}
    )
    build(exact)
    reference = scores_of(exact)
    agreement, size = [], []
    for name in FOLDED:
        scores = scores_of(indexes[name])
        agreement.append(min(np.corrcoef(scores[:, q], reference[:, q])[0, 1] for q in range(len(QUERIES))))
        size.append(Store(indexes[name].index).latest().index_spec)
    assert agreement == sorted(agreement) and agreement[0] > 0.4 and agreement[-1] > 0.8
    layouts = [CodeLayout(spec.layers, spec.code).bytes_per_example for spec in size]
    assert layouts == sorted(layouts)
    assert all(is_mlp(layer.name) for layer in size[0].layers) and len(size[0].layers) == 4


def test_an_index_with_folded_codes_grows_and_stays_comparable(
    indexes: dict[str, Config], corpus: Path, corpus_file: Path
) -> None:
    """The strongest rows of a search are those with the largest of all scores, old and new."""
    config = indexes["balanced"]
    before = scores_of(config)
    lines = corpus_file.read_text().splitlines(keepends=True)
    (corpus / "second.jsonl").write_text("".join(lines[200:260]))
    generation = update(config)
    index = lc.open_index(config.index)
    assert index.generation.generation == generation.generation == 2
    ids, scores = index.scores(QUERIES)
    assert len(ids) > len(before)
    best = np.sort(scores, axis=1)[:, ::-1][:, :5]
    found = [[row.score for row in answer.proponents] for answer in index.top_k(QUERIES, 5)]
    np.testing.assert_allclose(found, best, rtol=1e-4)


def test_rows_of_a_preset_of_version_1_are_not_mixed_with_new_ones(
    corpus: Path, model_folder: Path, tmp_path: Path
) -> None:
    """The message says what made them, how to rebuild, and the settings that go on with them, which work."""
    code = {"kind": "cut", "rank": 4, "dtype": "sign"}
    old = config_of(
        "balanced",
        tmp_path / "old",
        corpus,
        model_folder,
        model={"layers": "all"},
        projection=VERSION_1,
        code=code,
    )
    build(old)
    rows = Store(old.index).latest().rows
    with pytest.raises(UserError, match=r"made with presets of version 1.*build a new index") as refusal:
        build(config_of("balanced", tmp_path / "old", corpus, model_folder))
    advice = str(refusal.value).partition("setting ")[2]
    assert "model.layers: all" in advice and "projection: {kind: random, whiten: true, factor: 2}" in advice
    assert "code: {kind: cut, rank: 4, dtype: sign}" in advice
    assert build(old).rows == rows
