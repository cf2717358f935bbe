"""Invariant: a worker loads and checks the model once, whatever it does with it, and its codes are the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.corpus.file_listing import SHARD_ROWS
from lorif_core.gradients import extract
from lorif_core.gradients.roots import WhitenedSide, whitening_name
from lorif_core.lifecycle import index_shard
from lorif_core.lifecycle.calibrate import Counts, SampledShard, whiten_group
from lorif_core.lifecycle.index_shard import ShardIndexer
from lorif_core.lifecycle.plan import make_plan
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tables.store import Store
from lorif_core.tables.whitenings import WhiteningHeader
from tasks.workers.encoding import EncodingRole


@pytest.fixture(params=[{"kind": "random", "factor": 2}, {"kind": "folded"}], ids=lambda param: param["kind"])
def config(request: pytest.FixtureRequest, model_folder: Path, corpus_file: Path, tmp_path: Path) -> Config:
    return parse_config(
        {
            "index": str(tmp_path / "index"),
            "model": {"path": str(model_folder)},
            "corpus": {"uri": str(corpus_file), "max_length": 64},
            "projection": {**request.param, "whiten": True},
            "code": {"kind": "dense", "dtype": "float32"},
            "curvature": {"kind": "none"},
        }
    )


def calibrated(role: EncodingRole, spec: IndexSpec, shard: ShardRef) -> tuple[Counts, list[WhitenedSide]]:
    """The whitening that a role measures on a shard."""
    counts, sums = role.sums(spec.to_json(), [SampledShard(shard, 20)], [range(len(spec.layers))])
    assert isinstance(counts, Counts) and not isinstance(sums, Counts)
    store = Store("unused")
    return counts, whiten_group([sums], counts.tokens, torch.device("cpu"), store, None)[1]


def test_calibrating_and_indexing_share_one_checked_model(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    load, check = index_shard.load_model, extract.check_capture
    monkeypatch.setattr(index_shard, "load_model", lambda *args: done.append("load") or load(*args))
    monkeypatch.setattr(extract, "check_capture", lambda model: done.append("check") or check(model))
    decomposed, eigh = [0], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrices: decomposed.append(len(matrices)) or eigh(matrices))
    plan, store = make_plan(config), Store(config.index)
    role, shard = EncodingRole(config, 1), plan.shards[-1]
    role.load(plan.spec.to_json())
    counts, sides = calibrated(role, plan.spec, shard)
    name = whitening_name(counts.tokens, counts.examples, [side.summary for side in sides])
    spec = plan.spec.with_whitening(name)
    store.whitenings.create()
    header = WhiteningHeader(name, spec.hash, counts.tokens, counts.examples)
    store.whitenings.commit(name, role.write_whitening(spec.to_json(), header, sides))
    store.create(spec)
    assert 0 < sum(decomposed) <= 2 * len(spec.layers)
    decomposed.clear()
    receipt = role.index(spec.to_json(), shard)
    assert not decomposed, "a worker that indexes reads the roots"
    assert [side.summary for side in calibrated(role, spec, shard)[1]] == [side.summary for side in sides]
    assert done == ["load", "check"]
    assert receipt.rows == shard.rows < SHARD_ROWS

    other = EncodingRole(config, 1)  # a worker that replaces one that died before it indexed
    other.load(spec.to_json())
    assert done == 2 * ["load", "check"]
    examples = list(ShardIndexer(config, spec).read(shard))[:30]
    rows, expected = (
        indexer.encode(examples)[0].codes
        for indexer in (ShardIndexer(config, spec, ShardIndexer(config, spec).loaded), ShardIndexer(config, spec))
    )
    np.testing.assert_array_equal(rows, expected)


def test_a_failed_load_is_tried_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    spec_json = make_plan(config).spec.to_json()
    role = EncodingRole(config, 1)
    with monkeypatch.context() as broken:
        broken.setattr(index_shard, "check_same_checkpoint", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            role.load(spec_json)
    role.load(spec_json)
