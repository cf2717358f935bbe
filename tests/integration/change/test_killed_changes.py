"""Invariant: a command that is killed at any moment and run again ends with the same rows and scores as one that
is not killed; no row is lost or duplicated. The previous generation answers all the time.
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
    "gc, during its deletions": ("gc", Moment("^(POST .*delete|DELETE .*/data/)", 2)),
}
SLOW = {
    "refresh, between commit and publishing": ("refresh", Moment("^PUT .*/generations.lance/_versions")),
    "remove, between the removal of rows and publishing": ("remove", Moment("^PUT .*/curvature.lance/_versions")),
    "update, during its shards": ("update", Moment(RECEIPT, 2)),
    "update, before its rows are committed": ("update", Moment("^PUT .*/factors.lance/_versions")),
    "update, before its curvature": ("update", Moment("^PUT .*/curvature.lance/data")),
    "update, before its tags": ("update", Moment("^PUT .*/_refs/tags")),
    "refresh, during its shards": ("refresh", Moment(RECEIPT, 4)),
    "refresh, before its curvature": ("refresh", Moment("^PUT .*/curvature.lance/data")),
    "remove, before it is recorded": ("remove", Moment("^PUT .*/removed.lance/_versions")),
    "remove, before rows are removed": ("remove", Moment("^PUT .*/factors.lance/_versions")),
    "remove, before it is published": ("remove", Moment("^PUT .*/generations.lance/_versions")),
    "gc, before generations are removed": ("gc", Moment("^PUT .*/generations.lance/_versions")),
    "gc, before their tags are removed": ("gc", Moment("^HEAD .*/_refs/tags")),
    "gc, before their fits are removed": ("gc", Moment("^PUT .*/curvature.lance/_versions")),
}


@dataclass(frozen=True)
class IndexState:
    """The rows of an index in its newest generation, and its answer to the queries."""

    rows: dict[str, bytes]
    metadata: dict[str, tuple[object, ...]]
    answer: Answer

    def check(self, other: "IndexState") -> None:
        """Fail unless the other state is the same; scores may differ by the order of floating-point sums."""
        assert other.rows == self.rows and other.metadata == self.metadata
        check_answer(other.answer, self.answer)


def check_answer(actual: Answer, expected: Answer) -> None:
    """Fail unless both have the same generation, the same ids (each once) and close scores."""
    by_id = [dict(zip(ids, scores.T, strict=True)) for _, ids, scores in (actual, expected)]
    assert actual[0] == expected[0] and by_id[0].keys() == by_id[1].keys() and len(actual[1]) == len(by_id[0])
    names, largest = list(by_id[1]), np.abs(expected[2]).max()
    actual_scores, expected_scores = (np.stack([scores[name] for name in names]) for scores in by_id)
    np.testing.assert_allclose(actual_scores, expected_scores, rtol=1e-3, atol=1e-4 * largest)


class IndexCopies:
    """Copies of an index of two generations, whose corpus has changed since."""

    def __init__(self, server: MotoServer, config: Config, moved: Path, folder: Path) -> None:
        self.server, self.moved, self.folder = server, moved, folder
        self._config, self._numbers = config, itertools.count()
        self.further = [config.model.model_copy(update={"path": str(moved)})]
        self.models = models_by_checkpoint(config, self.further)
        raw = config.model_dump(exclude_unset=True)
        raw["compute"]["ray"] = ray.get_runtime_context().gcs_address
        self._raw = raw

    def new(self) -> Config:
        """The config of a new copy."""
        name = f"killed-{next(self._numbers)}"
        copy_index(self.server, self._config.index.rpartition("/")[2], name)
        config = self._config.model_copy(update={"index": f"s3://{BUCKET}/{name}"})
        (self.folder / name).mkdir()
        (self.folder / name / "config.yaml").write_text(yaml.safe_dump({**self._raw, "index": config.index}))
        return config

    def words(self, command: str, config: Config, endpoint: str) -> list[str]:
        """The words of a command line for a copy."""
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

    def state(self, config: Config) -> IndexState:
        version = Store(config.index, config.storage).latest().factors_version
        newest = answer(lc.open_index(config.index, config.storage), self.models)
        return IndexState(stored_rows(config, version), metadata_of(config), newest)


@pytest.fixture(scope="module")
def copies(
    s3_server: MotoServer, prefect_server: None, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> IndexCopies:
    """Generation 2 has one changed and one new shard. Since then, one changed, one vanished, and two are new."""
    client = s3_server.client()

    def change(number: int) -> None:
        body = shard_file(number).replace(b"cat", b"dog")
        client.put_object(Bucket=BUCKET, Key=f"{CORPUS}/{number:03d}.jsonl", Body=body)

    put_shards(s3_server, CORPUS, range(5))
    config = s3_config(s3_server.url, "killed", CORPUS, compute={"workers": 1})
    build(config)
    change(3)
    put_shards(s3_server, CORPUS, range(5, 6))
    update(config)
    change(4)
    client.delete_object(Bucket=BUCKET, Key=f"{CORPUS}/000.jsonl")
    put_shards(s3_server, CORPUS, range(6, 8))
    moved = tmp_path_factory.mktemp("moved")
    scaled(gpt2(seed=5, vocab_size=VOCAB)).save_pretrained(moved)
    byte_tokenizer().save_pretrained(moved)
    return IndexCopies(s3_server, config, moved, tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def undisturbed_states(copies: IndexCopies) -> Callable[[str], list[IndexState]]:
    """The states of a copy before and after a command that is not killed; only one if the command is `gc`."""

    @cache
    def states_of(command: str) -> list[IndexState]:
        config = copies.new()
        before = copies.state(config)
        assert copies.run(command, config) == 0
        after = copies.state(config)
        return [before] if after.answer[0] == before.answer[0] else [before, after]

    return states_of


Check = Callable[[str, Moment], bool]


@pytest.fixture
def kill_and_repeat(
    copies: IndexCopies,
    undisturbed_states: Callable[[str], list[IndexState]],
    capsys: pytest.CaptureFixture[str],
) -> Check:
    """Kill a command at a moment, run it again, check all states; returns False if it ended before the moment."""

    def check(command: str, moment: Moment) -> bool:
        expected = {state.answer[0]: state for state in undisturbed_states(command)}
        config = copies.new()
        store = Store(config.index, config.storage)
        with Readers(config, 1, copies.further) as readers, FaultProxy(copies.server.url) as proxy:
            killed = kill_at(moment, proxy, copies.words(command, config, proxy.url), copies.folder / "errors.txt")
            after_kill = store.latest().generation
            expected[after_kill].check(copies.state(config))
            code = copies.run(command, config)
            errors = capsys.readouterr().err
        is_done = after_kill == max(expected) and command == "remove"
        assert code == 0 or (is_done and "matches none of its rows" in errors), errors
        assert store.latest().generation == max(expected)
        expected[max(expected)].check(copies.state(config))
        assert not readers.errors, readers.errors
        for reader_answer in readers.answers:
            check_answer(reader_answer, expected[reader_answer[0]].answer)
        collect(config, keep=1)
        garbage = find_garbage(store, keep=1)
        assert not (garbage.files or garbage.receipts or garbage.curvatures)
        assert not (garbage.generations or garbage.uploads)
        expected[max(expected)].check(copies.state(config))
        return killed

    return check


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(name, marks=pytest.mark.chaos) for name in SLOW)])
def test_a_command_killed_at_a_moment(case: str, kill_and_repeat: Check) -> None:
    command, moment = (QUICK | SLOW)[case]
    assert kill_and_repeat(command, moment), "the command never reached this moment"


@pytest.mark.chaos
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_killed_before_every_write_to_the_store(command: str, kill_and_repeat: Check) -> None:
    number = 1
    while kill_and_repeat(command, Moment(WRITE, number)):
        number += 1
    log.warning("%s: killed at %d moments", command, number - 1)
    assert number > 10
