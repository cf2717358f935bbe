"""Invariant: while an index is built, updated and collected, every answer comes from one complete generation."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import lorif_core as lc
from flows.build import build
from lorif_core.config import Config, ModelConfig
from lorif_core.errors import UserError
from lorif_core.lifecycle.garbage import find_garbage, remove_garbage
from lorif_core.model.checkpoint import locate
from lorif_core.model.loading import LoadedModel, load_model
from lorif_core.search.index import Index
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.store import Store
from tasks.demo.object_store import MotoServer
from tests.integration.s3 import BUCKET, put_shards, s3_config
from tests.patience import patience

FOLDER = "corpus-readers"
QUERIES = ["the cat sees it", {"prompt": "the dog ", "completion": "runs"}]
PAUSE = 0.5  # seconds between queries; without it the readers slow down the builds
Answer = tuple[int, list[str], np.ndarray]
Models = dict[str, LoadedModel]


class Readers:
    """Threads that repeatedly open and query the index until they are stopped.

    Each thread has its own models, because hooks on a shared model would see the passes of all threads.
    """

    def __init__(self, config: Config, count: int = 2, further: Sequence[ModelConfig] = ()) -> None:
        self.answers: list[Answer] = []
        self.errors: list[BaseException] = []
        self._config = config
        self._stop = threading.Event()
        self._reached = [0] * count
        models = [models_by_checkpoint(config, further) for _ in range(count)]
        self._threads = [threading.Thread(target=self._ask, args=item) for item in enumerate(models)]

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def reach(self, number: int) -> None:
        """Wait until every reader has answered from this generation or a newer one."""
        deadline = time.monotonic() + patience(120)
        while min(self._reached) < number:
            assert time.monotonic() < deadline and not self.errors, self.errors
            time.sleep(0.05)

    def _ask(self, reader: int, model: Models) -> None:
        try:
            while not self._stop.wait(PAUSE):
                latest = answer(lc.open_index(self._config.index, self._config.storage), model)
                self.answers.append(latest)
                self._reached[reader] = latest[0]
        except BaseException as error:  # noqa: BLE001 - the test reports it
            self.errors.append(error)


def models_by_checkpoint(config: Config, further: Sequence[ModelConfig] = ()) -> Models:
    """The config's model and further models, by the fingerprint of their checkpoint."""
    return {
        locate(model, config.storage).fingerprint(): load_model(model, config.storage)
        for model in (config.model, *further)
    }


def answer(index: Index, model: LoadedModel | Models) -> Answer:
    """The number of the generation that answers, and all its ids and scores."""
    loaded = model if isinstance(model, LoadedModel) else model[index.generation.checkpoint]
    ids, scores = index.scores(QUERIES, loaded)
    return index.generation.generation, ids, scores


def collect(config: Config, keep: int) -> None:
    store = Store(config.index, config.storage)
    with hold_lease(config.index, config.storage, "gc"):
        remove_garbage(store, find_garbage(store, keep, lease_held=True))


def test_readers_see_only_complete_generations(
    s3_server: MotoServer, prefect_server: None, ray_session: None, model_folder: Path
) -> None:
    client = s3_server.client()
    put_shards(s3_server, FOLDER, range(6))
    config = s3_config(s3_server.url, "readers", FOLDER)
    model = load_model(config.model, config.storage)
    build(config)
    store = Store(config.index, config.storage)
    expected = {1: answer(lc.open_index(config.index, config.storage), model)}
    with Readers(config) as readers:
        readers.reach(1)
        for number in (2, 3):
            # a shard whose content changes, one that vanishes, one that is new
            other = client.get_object(Bucket=BUCKET, Key=f"{FOLDER}/{number - 1:03d}.jsonl")["Body"].read()
            client.put_object(
                Bucket=BUCKET,
                Key=f"{FOLDER}/{number:03d}.jsonl",
                Body=other.replace(b'"id": "', b'"id": "changed-'),
            )
            client.delete_object(Bucket=BUCKET, Key=f"{FOLDER}/{number + 2:03d}.jsonl")
            put_shards(s3_server, FOLDER, range(number + 8, number + 9))
            generation = build(config)
            assert generation.generation == number
            expected[number] = answer(Index(store, generation), model)
            readers.reach(number)
            collect(config, keep=2)
    assert not readers.errors, readers.errors
    assert {number for number, *_ in readers.answers} == {1, 2, 3}
    for number, ids, scores in readers.answers:
        _, expected_ids, expected_scores = expected[number]
        assert ids == expected_ids
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6 * np.abs(expected_scores).max())
    assert len({tuple(ids) for _, ids, _ in expected.values()}) == 3
    assert [retained.generation for retained in store.generations()] == [2, 3]


@pytest.mark.chaos
def test_a_reader_of_an_expired_generation_gets_an_error_or_a_complete_answer(
    s3_server: MotoServer, prefect_server: None, ray_session: None, model_folder: Path
) -> None:
    folder = f"{FOLDER}-expired"
    put_shards(s3_server, folder, range(3))
    config = s3_config(s3_server.url, "readers-expired", folder)
    model = load_model(config.model, config.storage)
    build(config)
    old = lc.open_index(config.index, config.storage)
    expected = answer(old, model)
    put_shards(s3_server, folder, range(3, 4))
    build(config)
    collect(config, keep=1)
    with suppress(UserError):
        _, ids, scores = answer(old, model)
        assert ids == expected[1] and np.allclose(scores, expected[2], rtol=1e-5)
    with pytest.raises(UserError, match="generation"):
        answer(old, model)
