"""Invariant: a build that is run again after its actors, driver or process group were killed ends with the tables
of an uninterrupted build: the same rows, each once, byte by byte, and a complete curvature. A batch attribution
ends with the same scores.
"""

import json
import logging
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import yaml

import lorif_core as lc
from flows.attribute import attribute
from flows.build import build
from lorif_core.config import Config
from lorif_core.lifecycle.garbage import find_garbage, remove_garbage
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.store import Store
from tasks.demo.object_store import MotoServer
from tests.integration.killing import start_lorif
from tests.integration.rows import stored_rows
from tests.integration.s3 import s3_config
from tests.patience import patience

log = logging.getLogger(__name__)

CORPUS = "corpus-44"
KINDS = ("actor", "driver", "group")
WEIGHTS = {"actor": 2, "driver": 1, "group": 1}  # a build often ends before its actor is killed
SECONDS_TO_IMPORT = 4.0
SECONDS_OF_A_BUILD = 6.0
SECONDS_OF_AN_ACTOR = 2.5
MEMORY_OF_THREE_QUERIES = 6e-5


@pytest.fixture(scope="module")
def uninterrupted(s3_server: MotoServer, prefect_server: None, ray_session: None) -> Config:
    """The config of an index whose build was not interrupted."""
    config = s3_config(s3_server.url, "chaos-uninterrupted", CORPUS, compute={"workers": 2})
    build(config)
    return config


class KillableCommand:
    """A command in its own processes, on the Ray of the session or on a private one that dies with its group."""

    def __init__(
        self, config: Config, folder: Path, private_ray: bool, command: str = "build", *options: str
    ) -> None:
        address = "local" if private_ray else ray.get_runtime_context().gcs_address
        raw = config.model_dump(exclude_unset=True)
        raw["compute"]["ray"] = address
        self._path = folder / "config.yaml"
        self._path.write_text(yaml.safe_dump(raw))
        self._errors = folder / "errors.txt"
        self._command = [command, "-c", str(self._path), *options, "--json"]

    def start(self) -> None:
        """Start the command."""
        self.process = start_lorif(self._command, self._errors)

    def kill(self, kind: str, rng: random.Random) -> bool:
        """Kill one of its actors, its driver, or its process group; returns whether anything was killed."""
        if self.process.poll() is not None:
            return False
        actors = list(living_actors())
        if kind == "actor":
            return bool(actors) and kill_process(rng.choice(actors))
        if kind == "driver":
            self.process.kill()
        else:
            os.killpg(self.process.pid, signal.SIGKILL)
            for actor in actors:
                kill_process(actor)
        self.process.wait()
        return True

    def finish(self) -> int:
        """Start the command again if it has failed, and wait for its end; returns the rows of the generation."""
        if self.process.poll() is not None and self.process.returncode != 0:
            self.start()
        out, _ = self.process.communicate(timeout=patience(240))
        assert self.process.returncode == 0, f"{out[-500:]}\n{self._errors.read_text()[-3000:]}"
        return int(json.loads(out.splitlines()[-1])["rows"])


def living_actors() -> Iterator[psutil.Process]:
    """Processes that run an actor of this session's Ray."""
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline()[:1])
        except psutil.Error:
            continue
        if title.startswith("ray::RoleHost"):
            yield process


def kill_process(process: psutil.Process) -> bool:
    """Kill a process; returns False if it has ended already."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def kill_repeatedly(
    command: KillableCommand, rng: random.Random, kills: int, kinds: tuple[str, ...]
) -> Counter[str]:
    """Kill parts of a command at random times, and start it again after each kill, until it ends by itself."""
    done: Counter[str] = Counter()
    command.start()
    next_at = time.monotonic() + SECONDS_TO_IMPORT
    while sum(done.values()) < kills:
        (kind,) = rng.choices(kinds, [WEIGHTS[kind] for kind in kinds])
        if kind == "actor":
            while command.process.poll() is None and not any(living_actors()):
                time.sleep(0.02)
            next_at = time.monotonic() + rng.uniform(0, SECONDS_OF_AN_ACTOR)
        else:
            next_at += rng.uniform(0, SECONDS_OF_A_BUILD)
        while time.monotonic() < next_at and command.process.poll() is None:
            time.sleep(0.02)
        if command.kill(kind, rng):
            done[kind] += 1
        if command.process.poll() == 0:
            return done
        next_at = time.monotonic()
        if command.process.poll() is not None:
            command.start()
            next_at += SECONDS_TO_IMPORT
    return done


def check_against(uninterrupted: Config, config: Config, rows: int) -> None:
    """The tables of an index equal those of the uninterrupted one, before and after garbage collection."""
    expected = stored_rows(uninterrupted)
    store = Store(config.index, config.storage)
    (generation,) = store.generations()
    assert rows == generation.rows == len(expected)
    assert stored_rows(config, generation.factors_version) == expected
    components = [
        (row["layer_index"], row["component"]) for row in store.curvatures.spectra(generation, generation.newest)
    ]
    assert len(set(components)) == len(components) == 8 * 2 * 8
    with hold_lease(config.index, config.storage, "gc"):
        remove_garbage(store, find_garbage(store, keep=1, lease_held=True))
    remaining = find_garbage(store, keep=1)
    assert not (remaining.files or remaining.receipts or remaining.curvatures or remaining.uploads)
    assert stored_rows(config, generation.factors_version) == expected
    ids, scores = lc.open_index(config.index, config.storage).scores(["the cat sees"])
    ids_expected, scores_expected = lc.open_index(uninterrupted.index, uninterrupted.storage).scores(
        ["the cat sees"]
    )
    by_id = dict(zip(ids, scores[0], strict=True))
    np.testing.assert_allclose([by_id[name] for name in ids_expected], scores_expected[0], rtol=1e-2, atol=1e-4)


def interrupt_builds(
    uninterrupted: Config, folder: Path, seed: int, kills: int, builds: int, kills_per_build: int
) -> Counter[str]:
    """Kill build after build until there are enough kills and builds; returns the kills by kind."""
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    number = 0
    while sum(done.values()) < kills or number < builds:
        private = number % 5 == 4
        own_folder = folder / str(number)
        own_folder.mkdir()
        config = uninterrupted.model_copy(update={"index": f"{uninterrupted.index}-{seed}-{number}"})
        command = KillableCommand(config, own_folder, private)
        done += kill_repeatedly(command, rng, kills_per_build, ("group",) if private else KINDS)
        check_against(uninterrupted, config, command.finish())
        number += 1
        log.warning("build %d is correct; kills so far: %s", number, dict(done))
    return done


@pytest.mark.chaos
def test_six_kills(uninterrupted: Config, tmp_path: Path) -> None:
    done = interrupt_builds(uninterrupted, tmp_path, seed=3, kills=6, builds=1, kills_per_build=6)
    assert sum(done.values()) >= 6


@pytest.mark.chaos
def test_a_hundred_kills_in_twenty_builds(uninterrupted: Config, tmp_path: Path) -> None:
    done = interrupt_builds(uninterrupted, tmp_path, seed=20, kills=100, builds=20, kills_per_build=6)
    log.warning("kills: %s", dict(done))
    assert sum(done.values()) >= 100 and all(done[kind] >= 10 for kind in KINDS)


@pytest.mark.chaos
def test_twenty_kills_of_attributions(uninterrupted: Config, tmp_path: Path) -> None:
    """With blocks of three queries, every killed attribution ends with the scores of an uninterrupted one."""
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps({"text": f"the cat sees {i} dogs"}) + "\n" for i in range(120)))
    config = uninterrupted.model_copy(
        update={"compute": uninterrupted.compute.model_copy(update={"memory_gb": MEMORY_OF_THREE_QUERIES})}
    )
    attribute(config, str(queries), str(tmp_path / "uninterrupted"), 5)
    expected = (tmp_path / "uninterrupted" / "scores.parquet").read_bytes()
    rng, done, number = random.Random(5), Counter[str](), 0
    while sum(done.values()) < 20:
        own_folder, out = tmp_path / str(number), tmp_path / f"out-{number}"
        own_folder.mkdir()
        options = ("--queries", str(queries), "--out", str(out), "--top-k", "5")
        command = KillableCommand(config, own_folder, number % 3 == 2, "attribute", *options)
        done += kill_repeatedly(command, rng, 5, ("group",) if number % 3 == 2 else KINDS)
        command.finish()
        assert (out / "scores.parquet").read_bytes() == expected
        assert sorted(file.name for file in out.iterdir()) == ["report.html", "scores.parquet", "summary.json"]
        number += 1
    log.warning("kills: %s", dict(done))
