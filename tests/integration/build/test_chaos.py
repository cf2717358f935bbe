"""Invariant: however often actors, drivers and whole process groups are killed, a build that is run again ends
with the tables of one that never was: the same rows, each once, byte by byte, and a whole curvature. So does a
batch attribution, with the scores.
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
from lorif_core.storage.lease import hold
from lorif_core.tables.store import Store
from tasks.demo.object_store import MotoServer
from tests.integration.killing import start_lorif
from tests.integration.rows import stored_rows
from tests.integration.s3 import s3_config

log = logging.getLogger(__name__)

CORPUS = "corpus-44"
KINDS = ("actor", "driver", "group")
ODDS = {"actor": 2, "driver": 1, "group": 1}  # a build often ends before its actor is killed
SECONDS_TO_IMPORT = 4.0
SECONDS_OF_A_BUILD = 6.0
SECONDS_OF_AN_ACTOR = 2.5
MEMORY_OF_THREE_QUERIES = 6e-5


@pytest.fixture(scope="module")
def undisturbed(s3_place: MotoServer, prefect_server: None, ray_session: None) -> Config:
    """A build that nothing was killed in."""
    config = s3_config(s3_place.url, "chaos-undisturbed", CORPUS)
    build(config)
    return config


class Victim:
    """A command in processes of its own, on the session's Ray or on a private one that dies with its group."""

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
        """Run the command."""
        self.process = start_lorif(self._command, self._errors)

    def kill(self, kind: str, rng: random.Random) -> bool:
        """Kill one of its actors, its driver, or all of it; whether there was something to kill."""
        if self.process.poll() is not None:
            return False
        actors = list(living_actors())
        if kind == "actor":
            return bool(actors) and killed(rng.choice(actors))
        if kind == "driver":
            self.process.kill()
        else:
            os.killpg(self.process.pid, signal.SIGKILL)
            for actor in actors:
                killed(actor)
        self.process.wait()
        return True

    def finish(self) -> int:
        """Run to the end if it is not running, and wait; rows of the generation."""
        if self.process.poll() is not None and self.process.returncode != 0:
            self.start()
        out, _ = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, f"{out[-500:]}\n{self._errors.read_text()[-3000:]}"
        return int(json.loads(out.splitlines()[-1])["rows"])


def living_actors() -> Iterator[psutil.Process]:
    """Processes of this session's Ray that run an actor."""
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline()[:1])
        except psutil.Error:
            continue
        if title.startswith("ray::") and "Actor" in title:
            yield process


def killed(process: psutil.Process) -> bool:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def torment(victim: Victim, rng: random.Random, kills: int, kinds: tuple[str, ...]) -> Counter[str]:
    """Kill parts of a command at random moments, running it again after each death, until it ends by itself."""
    done: Counter[str] = Counter()
    victim.start()
    next_at = time.monotonic() + SECONDS_TO_IMPORT
    while sum(done.values()) < kills:
        (kind,) = rng.choices(kinds, [ODDS[kind] for kind in kinds])
        if kind == "actor":
            while victim.process.poll() is None and not any(living_actors()):
                time.sleep(0.02)
            next_at = time.monotonic() + rng.uniform(0, SECONDS_OF_AN_ACTOR)
        else:
            next_at += rng.uniform(0, SECONDS_OF_A_BUILD)
        while time.monotonic() < next_at and victim.process.poll() is None:
            time.sleep(0.02)
        if victim.kill(kind, rng):
            done[kind] += 1
        if victim.process.poll() == 0:
            return done
        next_at = time.monotonic()
        if victim.process.poll() is not None:
            victim.start()
            next_at += SECONDS_TO_IMPORT
    return done


def check_against(undisturbed: Config, config: Config, rows: int) -> None:
    """The tables of a tormented index are those of the undisturbed one; and again when the garbage is gone."""
    expected = stored_rows(undisturbed)
    store = Store(config.index, config.storage)
    (generation,) = store.generations()
    assert rows == generation.rows == len(expected)
    assert stored_rows(config, generation.factors_version) == expected
    components = [
        (row["layer_index"], row["component"]) for row in store.curvatures.spectra(generation, generation.newest)
    ]
    assert len(set(components)) == len(components) == 8 * 2 * 8
    with hold(config.index, config.storage, "gc"):
        remove_garbage(store, find_garbage(store, keep=1, held=True))
    left = find_garbage(store, keep=1)
    assert not (left.files or left.receipts or left.curvatures or left.uploads)
    assert stored_rows(config, generation.factors_version) == expected
    ids, scores = lc.open_index(config.index, config.storage).scores(["the cat sees"])
    ids_expected, scores_expected = lc.open_index(undisturbed.index, undisturbed.storage).scores(["the cat sees"])
    ours, theirs = dict(zip(ids, scores[0], strict=True)), dict(zip(ids_expected, scores_expected[0], strict=True))
    np.testing.assert_allclose([ours[name] for name in ids_expected], list(theirs.values()), rtol=1e-2, atol=1e-4)


def torment_builds(
    undisturbed: Config, folder: Path, seed: int, kills: int, builds: int, kills_per_build: int
) -> Counter[str]:
    """Torment build after build until there were enough of both; kills by kind."""
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    number = 0
    while sum(done.values()) < kills or number < builds:
        private = number % 5 == 4
        place = folder / str(number)
        place.mkdir()
        config = undisturbed.model_copy(update={"index": f"{undisturbed.index}-{seed}-{number}"})
        victim = Victim(config, place, private)
        done += torment(victim, rng, kills_per_build, ("group",) if private else KINDS)
        check_against(undisturbed, config, victim.finish())
        number += 1
        log.warning("build %d is right; kills so far: %s", number, dict(done))
    return done


@pytest.mark.chaos
def test_six_kills(undisturbed: Config, tmp_path: Path) -> None:
    done = torment_builds(undisturbed, tmp_path, seed=3, kills=6, builds=1, kills_per_build=6)
    assert sum(done.values()) >= 6


@pytest.mark.chaos
def test_a_hundred_kills_in_twenty_builds(undisturbed: Config, tmp_path: Path) -> None:
    done = torment_builds(undisturbed, tmp_path, seed=20, kills=100, builds=20, kills_per_build=6)
    log.warning("kills: %s", dict(done))
    assert sum(done.values()) >= 100 and all(done[kind] >= 10 for kind in KINDS)


@pytest.mark.chaos
def test_twenty_kills_of_attributions(undisturbed: Config, tmp_path: Path) -> None:
    """Blocks of three queries; every folder has the scores of an attribution that nothing was killed in."""
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps({"text": f"the cat sees {i} dogs"}) + "\n" for i in range(120)))
    config = undisturbed.model_copy(
        update={"compute": undisturbed.compute.model_copy(update={"memory_gb": MEMORY_OF_THREE_QUERIES})}
    )
    attribute(config, str(queries), str(tmp_path / "undisturbed"), 5)
    expected = (tmp_path / "undisturbed" / "scores.parquet").read_bytes()
    rng, done, number = random.Random(5), Counter[str](), 0
    while sum(done.values()) < 20:
        place, out = tmp_path / str(number), tmp_path / f"out-{number}"
        place.mkdir()
        options = ("--queries", str(queries), "--out", str(out), "--top-k", "5")
        victim = Victim(config, place, number % 3 == 2, "attribute", *options)
        done += torment(victim, rng, 5, ("group",) if number % 3 == 2 else KINDS)
        victim.finish()
        assert (out / "scores.parquet").read_bytes() == expected
        assert sorted(file.name for file in out.iterdir()) == ["report.html", "scores.parquet", "summary.json"]
        number += 1
    log.warning("kills: %s", dict(done))
