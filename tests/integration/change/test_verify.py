"""Invariants: no flipped bit of an index changes an answer without an error; `lorif verify` names damage."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lorif_core as lc
from flows.build import build
from flows.commands.maintenance import run_remove
from flows.update import update
from lorif_core.config import Config, ModelConfig, StorageConfig
from lorif_core.errors import DamagedIndexError, LorifError
from lorif_core.lifecycle.verify import verify
from lorif_core.search import part_reader
from lorif_core.spec import IndexSpec
from lorif_core.tables.file_digests import FileDigests
from lorif_core.tables.store import Store
from tests.integration.conftest import MakeConfig
from tests.integration.growing import Folder, codes_of
from tests.integration.lorif import run
from tests.models import gpt2, scaled
from tests.tiny_tokenizer import VOCAB, byte_tokenizer

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")

FLIPS = 100
QUERIES: list[Any] = ["the cat sees it", {"prompt": "the dog ", "completion": "runs"}]
ONE = {"workers": 1}  # each takes seconds to start
WHITENED = {"kind": "random", "whiten": True, "factor": 4}


@pytest.fixture(scope="module")
def indexes(
    make_config: MakeConfig, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Config]:
    """Two indexes of several generations: one with a curvature, two checkpoints and removed rows, one whitened."""
    root = tmp_path_factory.mktemp("verified")
    folder = Folder(root / "corpus", corpus_file)
    folder.put("a", range(20, 50))
    folder.put("b", range(50, 80))
    configs = {
        "fitted": make_config(root / "fitted", corpus=folder.section, curvature={"rank": 4}, compute=ONE),
        "whitened": make_config(
            root / "whitened", corpus=folder.section, projection=WHITENED, curvature={"kind": "none"}, compute=ONE,
            code={"dtype": "int8"},
        ),
    }  # fmt: skip
    for config in configs.values():
        build(config)
    folder.put("c", range(80, 110))
    folder.drop("b")
    update(configs["whitened"], remove_vanished=True)
    update(moved(configs["fitted"], root / "model"), remove_vanished=True)
    (root / "ids.txt").write_text("s90\n")
    run_remove(configs["fitted"].index, ["compute.workers=1"], str(root / "ids.txt"), None)
    return configs


def moved(config: Config, folder: Path) -> Config:
    """The config of an update that appends rows at a checkpoint that was trained further."""
    model = scaled(gpt2(vocab_size=VOCAB))
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1.01
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    sections = {
        "model": config.model.model_copy(update={"path": str(folder)}),
        "update": config.update.model_copy(update={"policy": "append"}),
    }
    return config.model_copy(update=sections)


def answers(config: Config) -> tuple[Any, ...]:
    """All that an index answers: scores, ranked rows under a condition, their texts, sums, self-influences."""
    index = lc.open_index(config.index)
    ids, scores = index.scores(QUERIES)
    top = index.top_k(QUERIES, 3, where="tokens > 3 and text like '%a%'", normalise="cosine")
    hits = [[(hit.example_id, hit.score) for hit in [*best.proponents, *best.opponents]] for best in top]
    details = index.store.rows.details(index.generation.factors_version, ids)
    totals = index.totals(QUERIES[:1]).to_pylist()
    own = [(names, values.tobytes()) for names, values in index.self_influence()]
    return index.generation, ids, scores.tobytes(), hits, details, totals, own


@pytest.fixture(autouse=True)
def models_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads every checkpoint once, because the tests ask many times."""
    loaded: dict[str, Any] = {}
    load = part_reader.load_matching

    def load_once(spec: IndexSpec, model: ModelConfig, storage: StorageConfig) -> Any:
        if model.path not in loaded:
            loaded[model.path] = load(spec, model, storage)
        return loaded[model.path]

    monkeypatch.setattr(part_reader, "load_matching", load_once)


def files_of(config: Config) -> list[Path]:
    return sorted(path for path in Path(config.index).rglob("*") if path.is_file())


class Flipped:
    """One flipped bit of a file, for the length of a `with` block."""

    def __init__(self, path: Path, byte: int, bit: int) -> None:
        self._path, self._byte, self._bit = path, byte, bit

    def __enter__(self) -> None:
        self._content = self._path.read_bytes()
        changed = bytearray(self._content)
        changed[self._byte] ^= 1 << self._bit
        self._path.write_bytes(changed)

    def __exit__(self, *raised: object) -> None:
        self._path.write_bytes(self._content)


def random_flips(config: Config, count: int, seed: int) -> list[tuple[Path, int, int]]:
    """Bits of all files of an index, small files as often as large ones."""
    chosen = random.Random(seed)
    files = [path for path in files_of(config) if path.stat().st_size]
    picked = [chosen.choice(files) for _ in range(count)]
    return [(path, chosen.randrange(path.stat().st_size), chosen.randrange(8)) for path in picked]


def is_damage_found(config: Config) -> bool:
    try:
        return bool(verify(Store(config.index)).damage)
    except LorifError:
        return True


@pytest.mark.parametrize("name", ["fitted", "whitened"])
def test_every_flipped_bit_is_found_or_changes_no_answer(indexes: dict[str, Config], name: str) -> None:
    config = indexes[name]
    intact, missed = answers(config), 0
    assert not verify(Store(config.index)).damage
    for path, byte, bit in random_flips(config, FLIPS // 2, seed=18):
        with Flipped(path, byte, bit):
            if not is_damage_found(config):
                assert answers(config) == intact, f"bit {bit} of byte {byte} of {path} changes answers unnoticed"
                missed += 1
    assert missed < FLIPS // 2


def scores_by_id(config: Config) -> np.ndarray:
    """(Q, N) scores in the order of the ids: the order of the rows depends on which shard ends first."""
    ids, scores = lc.open_index(config.index).scores(QUERIES)
    return scores[:, np.argsort(ids)]


def test_repair_replaces_only_the_rows_of_the_damaged_file(
    make_config: MakeConfig, corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Folder(tmp_path / "corpus", corpus_file)
    folder.put("a", range(20, 50))
    config = make_config(tmp_path / "index", corpus=folder.section, curvature={"rank": 4}, compute=ONE)
    build(config)
    folder.put("b", range(50, 80))
    update(config)  # a build would join both shards in one file
    before, scores = codes_of(config), scores_by_id(config)
    code, out, _ = run(capsys, "verify", config.index)
    assert code == 0 and "60 rows" in out and "0 damaged" in out

    digests, _ = FileDigests(config.index, config.storage).read()
    (damaged,) = (item for item in digests if item.key.startswith("b.jsonl"))
    path = Path(config.index) / "factors.lance" / "data" / damaged.name
    content = bytearray(path.read_bytes())
    content[content.find(before["s50"][0])] ^= 16  # in a code
    path.write_bytes(content)
    with pytest.raises(DamagedIndexError, match=r"'s50'.*lorif verify"):
        lc.open_index(config.index).top_k(QUERIES, 3)
    code, out, _ = run(capsys, "verify", config.index)
    assert code == 1 and damaged.key in out and "--repair" in out and "a.jsonl" not in out

    code, out, _ = run(capsys, "verify", config.index, "--repair", "compute.workers=1", "--json")
    result = json.loads(out.splitlines()[-1])
    assert code == 1 and result["repaired"] == {"generation": 3, "command": "verify", "rows_removed": 30}
    retained = codes_of(config)
    assert retained == {name: row for name, row in before.items() if int(name[1:]) < 50}
    update(config)
    assert codes_of(config) == before
    repaired = scores_by_id(config)
    np.testing.assert_allclose(repaired, scores, rtol=0.02, atol=0.02 * np.abs(scores).max())
    assert run(capsys, "verify", config.index)[0] == 1  # the second generation still reads the damaged file
    assert run(capsys, "gc", config.index, "--apply", "--keep", "1")[0] == 0
    code, out, _ = run(capsys, "verify", config.index)
    assert code == 0 and "1 generations" in out
