"""Invariant: at a new checkpoint, old rows are recomputed, or scored as rows of their checkpoint; none is lost."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from prefect import flow

import lorif_core as lc
from flows.build import build
from flows.serve.live_index import LiveIndex
from flows.update import update
from lorif_core.config import Config
from lorif_core.lifecycle.publishing import rollback
from lorif_core.lifecycle.update import make_update_plan
from lorif_core.model.loading import load_model
from lorif_core.search.queries import as_query
from lorif_core.search.query_encoder import QueryEncoder
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.indexing import index_shards
from tasks.model_workers import ModelWorkers
from tasks.older import calibrate_whitening
from tasks.repair import repair
from tests.integration.conftest import MakeConfig
from tests.integration.growing import Folder, codes_of, scores_of
from tests.integration.kinds import check_agreement, check_two_stage
from tests.integration.lorif import run
from tests.models import gpt2, scaled
from tests.tiny_tokenizer import VOCAB, byte_tokenizer

QUERIES: list[object] = ["the cat sees it", {"prompt": "the dog ", "completion": "runs"}]
NONE = {"kind": "none"}
ONE = {"workers": 1}
WHITENED = {"kind": "random", "whiten": True, "factor": 4}
DENSE = {"kind": "dense", "dtype": "float32"}

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model after a little and after much training, which noise on the weights stands for."""
    folders = {}
    for name, amount in {"little": 0.02, "further": 0.03, "much": 1.0}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        model = scaled(gpt2(vocab_size=VOCAB))
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                weight += amount * weight.std(correction=0) * torch.randn(weight.shape, generator=noise)
        model.save_pretrained(folders[name])
        byte_tokenizer().save_pretrained(folders[name])
    return folders


@pytest.fixture
def folder(tmp_path: Path, corpus_file: Path) -> Folder:
    folder = Folder(tmp_path / "corpus", corpus_file)
    folder.put("a", range(20, 80))
    return folder


def at(config: Config, model: Path, **options: object) -> Config:
    """The config of an update at another checkpoint, with options of the `update` section."""
    sections = {
        "model": config.model.model_copy(update={"path": str(model)}),
        "update": config.update.model_copy(update=options),
    }
    return config.model_copy(update=sections)


def with_own_index(config: Config, name: str) -> Config:
    """The same config with an index of this name."""
    return config.model_copy(update={"index": str(Path(config.index).parent / name)})


def texts_of(folder: Path) -> dict[str, str]:
    lines = [yaml.safe_load(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]
    return {line["id"]: line["text"] for line in lines}


def test_close_rows_follow_the_new_checkpoint(
    make_config: MakeConfig, folder: Folder, tmp_path: Path, moved: dict[str, Path]
) -> None:
    """Their scores are those of their old gradients, whitened by the new checkpoint, against its queries."""
    config = make_config(
        tmp_path / "index", corpus=folder.section, projection=WHITENED, code=DENSE, curvature=NONE, compute=ONE
    )
    first = build(config)
    rows, reader = codes_of(config), lc.open_index(config.index)
    before = reader.scores(QUERIES)
    folder.put("b", range(80, 100))
    newer = at(config, moved["little"])
    second = update(newer)
    (drift,) = second.changes["older_rows"]
    assert drift["decision"] == "follows" and 0.9 < drift["cosine"] < 0.9999 and drift["sampled"] == 60
    assert 0.9 < drift["score_correlation"] <= 1
    assert [(part.rows, part.follows is not None) for part in second.parts] == [(60, True), (20, False)]
    assert {name: codes_of(newer)[name] for name in rows} == rows, "rows must not be rewritten"
    assert second.changes["rows_added"] == 20 and second.changes["rows_refreshed"] == 0
    again = reader.scores(QUERIES)
    assert again[0] == before[0] and np.array_equal(again[1], before[1]), "the old generation must not change"

    store, spec = Store(config.index), second.index_spec
    roots = store.whitenings.roots(spec.projection.whitening)
    assert spec.projection.whitening != first.index_spec.projection.whitening and roots is not None
    old, new = (load_model(of.model, of.storage) for of in (config, newer))
    encoder = QueryEncoder(new, spec, roots)
    queries_QD = torch.cat(encoder.gradients([as_query(query, 0) for query in QUERIES]).layers, dim=1).double()
    texts, scores = texts_of(tmp_path / "corpus"), scores_of(newer, QUERIES)
    fresh = lc.open_index(config.index)
    check_agreement(fresh, QUERIES)
    own = {name: value for ids, values in fresh.self_influence() for name, value in zip(ids, values, strict=True)}
    for names, model in (([*rows], old), ([name for name in scores if name not in rows], new)):
        encoder = QueryEncoder(model, spec, roots)
        gradients = encoder.gradients([as_query({"text": texts[name]}, 0) for name in names]).layers
        rows_ND = torch.cat(gradients, dim=1).double()
        expected = (rows_ND @ queries_QD.T).numpy()
        actual = np.stack([scores[name] for name in names])
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_allclose([own[name] for name in names], rows_ND.square().sum(dim=1), rtol=1e-4)

    folder.put("c", range(100, 110))
    third = update(newer)
    assert [(part.rows, part.follows is not None) for part in third.parts] == [(60, True), (30, False)]
    assert third.changes["older_rows"] == [] and third.newest.metric is not None
    check_agreement(lc.open_index(config.index), QUERIES)


def test_a_new_checkpoint_without_new_data_has_all_rows_in_every_search(
    make_config: MakeConfig, folder: Folder, tmp_path: Path, moved: dict[str, Path]
) -> None:
    """The rows follow, so the part of the new checkpoint has none."""
    code = {"kind": "cut", "rank": 2, "dtype": "sign"}
    config = make_config(
        tmp_path / "index", corpus=folder.section, projection=WHITENED, code=code, curvature=NONE, compute=ONE
    )
    build(config)
    second = update(at(config, moved["little"]))
    assert [(part.rows, part.follows is not None) for part in second.parts] == [(60, True), (0, False)]
    for two_stage in (False, True):
        live = LiveIndex(config.index, [], None, 1.0, two_stage=two_stage)
        (top,) = live.current.index.top_k(QUERIES[:1], 60, two_stage=two_stage)
        assert len(top.proponents) == 60
    check_two_stage(lc.open_index(config.index), QUERIES)


@pytest.mark.parametrize("curvature", [pytest.param("none", marks=pytest.mark.chaos), "woodbury"])
def test_rows_follow_through_several_checkpoints_and_back(
    curvature: str, make_config: MakeConfig, folder: Folder, tmp_path: Path, moved: dict[str, Path]
) -> None:
    """Also those of a file that has left the corpus; and each checkpoint has a curvature of its own."""
    code = {"kind": "cut", "rank": 2, "dtype": "sign"}
    config = make_config(
        tmp_path / "index", corpus=folder.section, projection=WHITENED, code=code, curvature={"kind": curvature},
        compute=ONE,
    )  # fmt: skip
    first = build(config)
    folder.put("b", range(80, 110))
    second = update(at(config, moved["little"], max_drift=1.0))
    folder.drop("a")
    folder.put("c", range(110, 140))
    third = update(at(config, moved["further"], max_drift=1.0))
    assert [part.rows for part in third.parts] == [60, 30, 30]
    assert [part.follows for part in third.parts] == [third.newest.spec, third.newest.spec, None]
    assert second.newest.spec != third.newest.spec and len(scores_of(config, QUERIES)) == 120

    folder.put("a", range(20, 80))
    back = update(at(config, Path(config.model.path), max_drift=1.0))
    assert back.newest.spec == first.newest.spec and back.newest.follows is None
    assert sorted(part.rows for part in back.parts) == [30, 30, 60] and len(scores_of(config, QUERIES)) == 120
    assert {part.follows for part in back.parts[:-1]} == {first.newest.spec}
    if curvature != "none":
        layer = Store(config.index).curvatures.layer(back, back.newest, 0)
        assert layer.rows == 120 and back.changes["curvature"] == "fitted"
    assert update(at(config, Path(config.model.path), max_drift=1.0)) == back, "nothing has changed"


def test_rows_that_have_moved_far_are_recomputed(
    make_config: MakeConfig, folder: Folder, tmp_path: Path, moved: dict[str, Path]
) -> None:
    """The result equals a build at the new checkpoint, and the work of a crashed run is reused."""
    code = {"kind": "rank", "rank": 2, "dtype": "sign"}
    config = make_config(
        tmp_path / "index", corpus=folder.section, projection=WHITENED, code=code, curvature=NONE, compute=ONE
    )
    first = build(config)
    rows = codes_of(config)
    folder.put("b", range(80, 100))
    newer = at(config, moved["much"])

    @flow
    def die_before_publishing() -> None:
        with hold_lease(config.index, config.storage, "update") as lease, ModelWorkers(newer) as workers:
            plan = make_update_plan(at(newer, moved["much"], policy="refresh"))
            plan = calibrate_whitening(newer, plan, lease, workers)
            index_shards.fn(newer, plan.build, lease, False, workers)

    die_before_publishing()
    store = Store(config.index)
    assert store.latest() == first and codes_of(config) == rows
    version = store.rows.version()
    second = update(newer)
    (drift,) = second.changes["older_rows"]
    assert drift["decision"] == "refreshed" and drift["cosine"] < 0.9
    assert second.changes["rows_refreshed"] == 60 and second.changes["rows_added"] == 20
    assert store.rows.version() == version, "all rows were committed already"
    assert len(second.parts) == 1
    rebuilt = with_own_index(newer, "rebuilt")
    assert build(rebuilt).index_spec == second.index_spec and codes_of(newer) == codes_of(rebuilt)
    restored = rollback_to(config, 1)
    assert restored.checkpoint == first.checkpoint and codes_of(config) == rows
    assert build(newer.model_copy(update={"model": config.model})).checkpoint == first.checkpoint


def rollback_to(config: Config, number: int) -> Generation:
    store = Store(config.index, config.storage)
    with hold_lease(config.index, config.storage, "rollback") as lease:
        return rollback(store, lease, number)


def test_appended_rows_are_of_the_new_checkpoint_and_the_others_stay_at_their_own(
    make_config: MakeConfig, folder: Folder, tmp_path: Path, moved: dict[str, Path]
) -> None:
    config = make_config(tmp_path / "index", corpus=folder.section, code={"dtype": "float32"}, compute=ONE)
    first = build(config)
    before = scores_of(config, QUERIES)
    newer = at(config, moved["little"], policy="append", sample_share=1.0)
    assert update(newer) == first, "nothing may be published without new data"
    folder.put("b", range(80, 100))
    second = update(newer)
    assert [(part.rows, part.follows) for part in second.parts] == [(60, None), (20, None)]
    assert second.newest.sampled == 60, "the curvature must represent all rows"
    rebuilt = with_own_index(newer, "rebuilt")
    build(rebuilt)
    index, fresh = lc.open_index(config.index), lc.open_index(rebuilt.index)
    for layer in range(len(second.index_spec.layers)):
        ours = index.store.curvatures.layer(second, second.newest, layer)
        theirs = fresh.store.curvatures.layer(fresh.generation, fresh.generation.newest, layer)
        assert ours.rows == theirs.rows == 80 and ours.trace == pytest.approx(theirs.trace, rel=1e-4)
        assert ours.damping == pytest.approx(theirs.damping, rel=0.05)
    actual, expected = scores_of(config, QUERIES), scores_of(rebuilt, QUERIES)
    for query in range(len(QUERIES)):
        ratios = [actual[name][query] / before[name][query] for name in before]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3, err_msg="old rows must share one unit")
        appended = [name for name in actual if name not in before]
        both = [[scores[name][query] for name in appended] for scores in (actual, expected)]
        assert np.corrcoef(both)[0, 1] > 0.98
    check_agreement(index, QUERIES)

    with hold_lease(config.index, config.storage, "verify") as lease:
        repaired = repair(index.store, set(), config.compute, lease, refit=True)
    assert repaired.newest.curvature == second.newest.curvature, "a repair cannot fit it again"
    refitting = at(newer, moved["little"], curvature="refit")
    refitted = update(refitting)
    assert refitted.newest.curvature != second.newest.curvature and refitted.newest.sampled == 60
    assert update(refitting) == refitted, "it is fitted once"

    last = update(at(newer, moved["little"], policy="refresh"))
    assert len(last.parts) == 1 and last.rows == 80 and codes_of(newer) == codes_of(rebuilt)


def test_a_checkpoint_of_other_layers_is_refused_before_anything_is_written(
    make_config: MakeConfig, folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path / "index", corpus=folder.section, curvature=NONE, compute=ONE)
    build(config)
    version = Store(config.index).rows.version()
    deeper = tmp_path / "deeper"
    scaled(gpt2(vocab_size=VOCAB, n_layer=3)).save_pretrained(deeper)
    byte_tokenizer().save_pretrained(deeper)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    code, _, err = run(capsys, "update", "-c", str(path), f"model.path={deeper}")
    assert code == 2 and "model.layers (8 layers" in err and "12 layers" in err and "checkpoint (" not in err
    for wrong in ("update.max_drift=1.5", "update.max_drift=-0.1", "update.policy=sometimes"):
        code, _, err = run(capsys, "update", "-c", str(path), wrong)
        assert code == 2 and wrong.partition("=")[0] in err
    code, _, err = run(capsys, "build", "-c", str(path), f"model.path={scaled_elsewhere(tmp_path)}")
    assert code == 2 and "move it to the new checkpoint with lorif update" in err
    assert Store(config.index).rows.version() == version


def scaled_elsewhere(folder: Path) -> Path:
    scaled(gpt2(seed=3, vocab_size=VOCAB)).save_pretrained(folder / "other")
    byte_tokenizer().save_pretrained(folder / "other")
    return folder / "other"
