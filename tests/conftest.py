"""Fixtures that all tests share: servers, a small model and a small corpus."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, because workers share the cores

# Ray lowers the priority of its workers, so a busy machine would give them nothing
os.environ.setdefault("RAY_worker_niceness", "0")

from tasks.demo.object_store import MotoServer
from tasks.environment import prepare_run
from tests.patience import patience

prepare_run("local")

WORDS = ["the", "a", "cat", "dog", "bird", "sees", "likes", "red", "small", "old", "tree", "and", "then", "runs"]


@pytest.fixture(scope="session", autouse=True)
def node_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Puts the cache of checkpoints into a folder of the session."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LORIF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a byte tokenizer, saved as a checkpoint."""
    from tests.models import gpt2, scaled
    from tests.tiny_tokenizer import VOCAB, byte_tokenizer

    folder = tmp_path_factory.mktemp("model")
    scaled(gpt2(vocab_size=VOCAB)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,100 short sentences in three shards; row 7 is empty and must be skipped."""
    import random

    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "sentences.jsonl"
    rows = [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(1100)]
    rows[7] = ""
    path.write_text("".join(json.dumps({"id": f"s{i}", "text": text}) + "\n" for i, text in enumerate(rows)))
    return path


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One temporary Prefect server on loopback for the session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=int(patience(90))):
        yield


@pytest.fixture(scope="session")
def ray_session(moto: MotoServer) -> Iterator[None]:
    """One private Ray for the session, whose workers have moto's credentials; `cluster()` uses and keeps it."""
    from lorif_core.config import ComputeConfig
    from tasks.cluster import cluster

    with cluster(ComputeConfig(ray="local")):
        yield


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """One moto server for the session; its credentials are set before Ray starts workers."""
    with MotoServer() as server, pytest.MonkeyPatch.context() as environment:
        for key, value in server.environment().items():
            environment.setenv(key, value)
        yield server
