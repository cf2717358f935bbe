"""Invariant: what changes an index, killed at any moment and run again, ends with the rows and the scores of one
that never was, nothing lost or doubled; the generation from before answers throughout.
"""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml

import lorif_core as lc
from flows.build import build
from flows.cli import main
from flows.update import update
from lorif_core.config import Config
from lorif_core.lifecycle.garbage import find_garbage
from lorif_core.tables.store import Store
from tasks.demo.object_store import MotoServer
from tests.integration.change.test_readers import Answer, Readers, answer, collect, models_by_checkpoint
from tests.integration.growing import metadata_of
from tests.integration.killing import WRITE, Moment, copy_index, kill_at
from tests.integration.rows import stored_rows
from tests.integration.s3 import BUCKET, put_shards, s3_config, shard_file
from tests.models import gpt2, scaled
from tests.servers.proxy import FaultProxy
from tests.tiny_tokenizer import VOCAB, byte_tokenizer

log = logging.getLogger(__name__)

CORPUS = "killed-corpus"
COMMANDS = {
    "update": "update -c {config} --remove-vanished {storage}",
    "refresh": "update -c {config} model.path={moved} update.policy=refresh --remove-vanished {storage}",
    "remove": "remove {index} --where row<2 compute.ray={ray} compute.workers=1 {storage}",
    "gc": "gc {index} --apply --keep 1 {storage}",
}
RECEIPT = "^PUT .*/_lorif/receipts/"
QUICK = {
    "update, between commit and publishing": ("update", Moment("^PUT .*/generations.lance/_versions")),
    "gc, among its deletions": ("gc", Moment("^(POST .*delete|DELETE .*/data/)", 2)),
}
SLOW = {
    "refresh, between commit and publishing": ("refresh", Moment("^PUT .*/generations.lance/_versions")),
    "remove, between taking out and publishing": ("remove", Moment("^PUT .*/curvature.lance/_versions")),
    "update, among its shards": ("update", Moment(RECEIPT, 2)),
    "update, before its rows are committed": ("update", Moment("^PUT .*/factors.lance/_versions")),
    "update, before its curvature": ("update", Moment("^PUT .*/curvature.lance/data")),
    "update, before its tags": ("update", Moment("^PUT .*/_refs/tags")),
    "refresh, among its shards": ("refresh", Moment(RECEIPT, 4)),
    "refresh, before its curvature": ("refresh", Moment("^PUT .*/curvature.lance/data")),
    "remove, before it is noted": ("remove", Moment("^PUT .*/removed.lance/_versions")),
    "remove, before rows are taken out": ("remove", Moment("^PUT .*/factors.lance/_versions")),
    "remove, before it is published": ("remove", Moment("^PUT .*/generations.lance/_versions")),
    "gc, before generations go": ("gc", Moment("^PUT .*/generations.lance/_versions")),
    "gc, before their tags go": ("gc", Moment("^HEAD .*/_refs/tags")),
    "gc, before their fits go": ("gc", Moment("^PUT .*/curvature.lance/_versions")),
}


@dataclass(frozen=True)
class Held:
    """What an index holds at its newest generation, and how it answers."""

    rows: dict[str, bytes]
    metadata: dict[str, tuple[object, ...]]
    answer: Answer

    def check(self, other: "Held") -> None:
        """Raise unless the other is the same; scores may differ by the order in which rows were added up."""
        assert other.rows == self.rows and other.metadata == self.metadata
        check_answer(other.answer, self.answer)


def check_answer(found: Answer, expected: Answer) -> None:
    """The same generation and ids, each once, and scores."""
    pairs = [dict(zip(ids, scores.T, strict=True)) for _, ids, scores in (found, expected)]
    assert found[0] == expected[0] and pairs[0].keys() == pairs[1].keys() and len(found[1]) == len(pairs[0])
    names, largest = list(pairs[1]), np.abs(expected[2]).max()
    ours, theirs = (np.stack([scores[name] for name in names]) for scores in pairs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * largest)


class Places:
    """Copies of one index of two generations, beside a corpus that has changed since."""

    def __init__(self, server: MotoServer, config: Config, moved: Path, folder: Path) -> None:
        self.server, self.moved, self.folder = server, moved, folder
        self._config, self._numbers = config, itertools.count()
        self.further = [config.model.model_copy(update={"path": str(moved)})]
        self.models = models_by_checkpoint(config, self.further)
        raw = config.model_dump(exclude_unset=True)
        raw["compute"]["ray"] = ray.get_runtime_context().gcs_address
        self._raw = raw

    def new(self) -> Config:
        """Another copy."""
        name = f"killed-{next(self._numbers)}"
        copy_index(self.server, self._config.index.rpartition("/")[2], name)
        config = self._config.model_copy(update={"index": f"s3://{BUCKET}/{name}"})
        (self.folder / name).mkdir()
        (self.folder / name / "config.yaml").write_text(yaml.safe_dump({**self._raw, "index": config.index}))
        return config

    def words(self, command: str, config: Config, endpoint: str) -> list[str]:
        """Of a command line for a copy."""
        return (
            COMMANDS[command]
            .format(
                config=self.folder / config.index.rpartition("/")[2] / "config.yaml",
                index=config.index,
                moved=self.moved,
                ray=self._raw["compute"]["ray"],
                storage=f"storage.endpoint={endpoint} storage.region=us-east-1 storage.allow_http=true",
            )
            .split()
        )

    def run(self, command: str, config: Config) -> int:
        """Run a command in this process; its exit code."""
        with pytest.raises(SystemExit) as stopped:
            main(self.words(command, config, self.server.url))
        return int(stopped.value.code or 0)

    def held(self, config: Config) -> Held:
        version = Store(config.index, config.storage).latest().factors_version
        return Held(stored_rows(config, version), metadata_of(config), self.ask(config))

    def ask(self, config: Config) -> Answer:
        return answer(lc.open_index(config.index, config.storage), self.models)


@pytest.fixture(scope="module")
def places(
    s3_place: MotoServer, prefect_server: None, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Places:
    """Generation 2 has a shard changed and a new one; since then one has changed, one is gone, and two are new."""
    client = s3_place.client()

    def change(number: int) -> None:
        body = shard_file(number).replace(b"cat", b"dog")
        client.put_object(Bucket=BUCKET, Key=f"{CORPUS}/{number:03d}.jsonl", Body=body)

    put_shards(s3_place, CORPUS, range(5))
    config = s3_config(s3_place.url, "killed", CORPUS, compute={"workers": 1})
    build(config)
    change(3)
    put_shards(s3_place, CORPUS, range(5, 6))
    update(config)
    change(4)
    client.delete_object(Bucket=BUCKET, Key=f"{CORPUS}/000.jsonl")
    put_shards(s3_place, CORPUS, range(6, 8))
    moved = tmp_path_factory.mktemp("moved")
    scaled(gpt2(seed=5, vocab_size=VOCAB)).save_pretrained(moved)
    byte_tokenizer().save_pretrained(moved)
    return Places(s3_place, config, moved, tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def undisturbed(places: Places) -> Callable[[str], list[Held]]:
    """What a copy holds before a command and after it, nothing killed; the same for `gc`, so it is there once."""

    @cache
    def of(command: str) -> list[Held]:
        config = places.new()
        before = places.held(config)
        assert places.run(command, config) == 0
        after = places.held(config)
        return [before] if after.answer[0] == before.answer[0] else [before, after]

    return of


Check = Callable[[str, Moment], bool]


@pytest.fixture
def kill_and_repeat(
    places: Places, undisturbed: Callable[[str], list[Held]], capsys: pytest.CaptureFixture[str]
) -> Check:
    """Kill a command at a moment, run it again, and look at it all; whether there was such a moment."""

    def check(command: str, moment: Moment) -> bool:
        known = {held.answer[0]: held for held in undisturbed(command)}
        config = places.new()
        store = Store(config.index, config.storage)
        with Readers(config, 1, places.further) as readers, FaultProxy(places.server.url) as proxy:
            killed = kill_at(moment, proxy, places.words(command, config, proxy.url), places.folder / "errors.txt")
            standing = store.latest().generation
            known[standing].check(places.held(config))
            code = places.run(command, config)
            told = capsys.readouterr().err
        is_done = standing == max(known) and command == "remove"
        assert code == 0 or (is_done and "matches none of its rows" in told), told
        assert store.latest().generation == max(known)
        known[max(known)].check(places.held(config))
        assert not readers.errors, readers.errors
        for found in readers.answers:
            check_answer(found, known[found[0]].answer)
        collect(config, keep=1)
        left = find_garbage(store, keep=1)
        assert not (left.files or left.receipts or left.curvatures or left.generations or left.uploads)
        known[max(known)].check(places.held(config))
        return killed

    return check


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(name, marks=pytest.mark.chaos) for name in SLOW)])
def test_a_command_killed_at_a_moment(case: str, kill_and_repeat: Check) -> None:
    command, moment = (QUICK | SLOW)[case]
    assert kill_and_repeat(command, moment), "the command never came to this moment"


@pytest.mark.chaos
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_killed_before_every_write_to_the_store(command: str, kill_and_repeat: Check) -> None:
    number = 1
    while kill_and_repeat(command, Moment(WRITE, number)):
        number += 1
    log.warning("%s: killed at %d moments", command, number - 1)
    assert number > 10
