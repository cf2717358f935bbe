"""Invariant: a corpus on the Hugging Face hub is one split at one commit, read by range, and a new commit changes
only the files that it changed.

The hub is `tests/servers/fake_hub.py`. The client reads the address when it is imported, so it runs in a process
of its own, which reads URIs from standard input and prints what it finds.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lorif_core.corpus import hub_datasets
from lorif_core.errors import LorifError, StoreUnavailableError, StoreUnreachableError, UserError
from lorif_core.storage.hub import hub_errors, parse_hub_uri
from tests.patience import patience
from tests.servers.fake_hub import FakeHub, fake_hub
from tests.unit.corpus.corpus_files import make_rows, to_lines, write
from tests.unit.corpus.token_writers import write_megatron

READER = """
import json, sys
from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.shards import list_shards, read_rows
from lorif_core.errors import LorifError

storage = StorageConfig()
for line in sys.stdin:
    keys = json.loads(line)
    last_only = keys.pop("last_only", False)
    corpus = CorpusConfig(**keys)
    try:
        listing = list_shards(corpus, storage)
        column = corpus.tokens or "text"
        shards = listing.shards[-1:] if last_only else listing.shards
        rows = [record[column] for shard in shards for _, record in read_rows(shard, [column], storage)]
        answer = {
            "rows": [row if isinstance(row, str) else row.tolist() for row in rows],
            "files": [[file.name, file.etag] for file in listing.files],
            "uris": sorted({shard.uri for shard in listing.shards}),
        }
    except LorifError as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
"""
CARD = b"""---
configs:
- config_name: en
  data_files: [{split: train, path: en/*.jsonl}, {split: test, path: en-test.jsonl}]
- config_name: fr
  data_files: fr/*.jsonl
---
"""


class Reader:
    """A process whose hub is the fake one."""

    def __init__(self, hub: FakeHub, home: Path) -> None:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "PYTHONPATH": str(Path.cwd())}
        environment.pop("HF_HUB_OFFLINE", None)
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __call__(self, uri: str, **keys: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"uri": uri, **keys}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(patience(30))


def lines(name: str, count: int = 2) -> bytes:
    return to_lines([{"text": f"{name} {i}"} for i in range(count)])


def texts(name: str, count: int = 2) -> list[str]:
    return [f"{name} {i}" for i in range(count)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    folder = tmp_path_factory.mktemp("files")
    with fake_hub() as served:
        parquet = {
            f"data/{split}-00000-of-00001.parquet": write(
                folder / f"{split}.parquet", make_rows(rows)
            ).read_bytes()
            for split, rows in (("train", 3), ("test", 2))
        }
        served.commit("o/plain", {**parquet, "README.md": b"# Plain", ".gitattributes": b""})
        files = {"en/a.jsonl": lines("en a"), "en/b.jsonl": lines("en b"), "en-test.jsonl": lines("test")}
        served.commit("o/cards", {**files, "fr/a.jsonl": lines("fr"), "README.md": CARD})
        served.commit("o/one", {"train.jsonl": lines("one")})
        served.commit("o/csv", {"train.csv": b"text\nx\n"})
        served.commit("o/csv", {"default/train/0000.jsonl": lines("copy")}, "refs/convert/parquet")
        write_megatron(folder / "t.bin", [[[1, 2]], [[3]]])
        served.commit(
            "o/tokens", {"t.bin": (folder / "t.bin").read_bytes(), "t.idx": (folder / "t.idx").read_bytes()}
        )
        served.commit("o/gated", {"train.jsonl": lines("secret")})
        served.gated.add("o/gated")
        yield served


@pytest.fixture(scope="module")
def reader(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(hub, tmp_path_factory.mktemp("home"))
    yield reader
    reader.close()


@pytest.mark.parametrize(
    ("place", "rows"),
    [
        ("o/plain/train", [f"text {i}" for i in range(3)]),
        ("o/plain/data/test-*.parquet", [f"text {i}" for i in range(2)]),
        ("o/plain@main/test", [f"text {i}" for i in range(2)]),
        ("o/plain/data", [f"text {i}" for i in (0, 1, 0, 1, 2)]),
        ("o/cards/en/train", texts("en a") + texts("en b")),
        ("o/cards/en/test", texts("test")),
        ("o/cards/fr", texts("fr")),
        ("o/cards/fr/train", texts("fr")),
        ("o/cards/en/b.jsonl", texts("en b")),
        ("o/one", texts("one")),
        ("o/one/train", texts("one")),
        ("o/csv@refs/convert/parquet/default/train", texts("copy")),
    ],
)
def test_a_split_or_a_path_is_read(reader: Reader, place: str, rows: list[str]) -> None:
    answer = reader(f"hf://datasets/{place}")
    assert answer.get("rows") == rows, answer


def test_tokens_are_read_from_the_hub(reader: Reader) -> None:
    assert reader("hf://datasets/o/tokens/*.bin", tokens="tokens")["rows"] == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("hf://datasets/o/plain", ["several splits", "hf://datasets/o/plain/train"]),
        ("hf://datasets/o/plain@main", ["several splits", "hf://datasets/o/plain@main/train"]),
        ("hf://datasets/o/cards", ["several configurations", "hf://datasets/o/cards/en/SPLIT"]),
        ("hf://datasets/o/cards/en", ["several splits", "hf://datasets/o/cards/en/test"]),
        ("hf://datasets/o/plain/trian", ["neither a split nor a path", "hf://datasets/o/plain/train"]),
        ("hf://datasets/o/cards/de", ["neither a split nor a path", "hf://datasets/o/cards/fr/SPLIT"]),
        ("hf://datasets/o/cards/en/dev", ["neither a split nor a path", "hf://datasets/o/cards/en/test"]),
        ("hf://datasets/o/plain/none.jsonl", ["does not exist"]),
        ("hf://datasets/o/csv", ["no file of a supported format", ".csv", "refs/convert/parquet"]),
        ("hf://datasets/o/none", ["does not exist on the hub, or is private", "HF_TOKEN"]),
        ("hf://datasets/o/plain@v9", ["revision that does not exist"]),
        ("hf://datasets/o/gated", ["gated", "HF_TOKEN"]),
        ("hf://datasets/plain", ["not an address of the hub", "OWNER/NAME"]),
        ("hf://o/model", ["no dataset"]),
        ("hf://spaces/o/x", ["no dataset"]),
    ],
)
def test_what_is_not_there_is_refused_in_one_sentence(reader: Reader, uri: str, parts: list[str]) -> None:
    error = reader(uri).get("error", "")
    assert error.startswith("UserError") and "\n" not in error and all(part in error for part in parts), error


def test_a_commit_changes_only_what_it_changed(hub: FakeHub, reader: Reader) -> None:
    first = hub.commit("o/grows", {"train-0.jsonl": lines("a"), "train-1.jsonl": lines("b")})
    before = reader("hf://datasets/o/grows/train")
    assert before["uris"] == [f"hf://datasets/o/grows@{first}/train-{i}.jsonl" for i in (0, 1)]
    hub.commit("o/grows", {"train-0.jsonl": lines("a"), "train-1.jsonl": lines("B"), "train-2.jsonl": lines("c")})
    after = reader("hf://datasets/o/grows/train")
    assert after["files"][0] == before["files"][0] and after["files"][1] != before["files"][1]
    assert after["rows"] == texts("a") + texts("B") + texts("c")
    assert reader(f"hf://datasets/o/grows@{first}/train")["rows"] == before["rows"]


def test_files_are_read_by_range(hub: FakeHub, reader: Reader, tmp_path: Path) -> None:
    rows = [{"text": os.urandom(4000).hex(), "id": i} for i in range(2000)]
    content = write(tmp_path / "big.parquet", rows, groups=[500] * 4).read_bytes()
    hub.commit("o/big", {"train.parquet": content})
    answer = reader("hf://datasets/o/big/train", last_only=True)
    assert answer["rows"][-1] == rows[-1]["text"]
    assert hub.sent["train.parquet"] < len(content) / 2


# ---- without a hub -------------------------------------------------------------------------------------------


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://hub/x?X-Amz-Signature=secret"))


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (GatedRepoError("x", response=response(403)), UserError, "gated"),
        (RepositoryNotFoundError("x", response=response(401)), UserError, "does not exist on the hub"),
        (RevisionNotFoundError("x", response=response(404)), UserError, "revision"),
        (HfHubHTTPError("x", response=response(403)), UserError, "token"),
        (HfHubHTTPError("x", response=response(429)), StoreUnavailableError, "answers 429"),
        (HfHubHTTPError("x", response=response(503)), StoreUnavailableError, "answers 503"),
        (HfHubHTTPError("x", response=response(418)), LorifError, "answers 418"),
        (httpx2.ConnectError("x"), StoreUnreachableError, "HF_ENDPOINT"),
        (httpx2.ReadTimeout("x"), StoreUnavailableError, "does not answer"),
        (OfflineModeIsEnabled("x"), UserError, "HF_HUB_OFFLINE"),
        (EntryNotFoundError("x"), FileNotFoundError, "hf://datasets/o/x"),
    ],
)
def test_errors_of_the_hub_have_one_sentence(error: Exception, kind: type[Exception], part: str) -> None:
    with pytest.raises(kind, match=part) as caught, hub_errors("hf://datasets/o/x"):
        raise error
    assert type(caught.value) is kind and "secret" not in str(caught.value)


def test_without_the_extra_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lorif-pipeline\[hf\]'"):
        hub_datasets.configurations("o/x", "c0ffee", "hf://datasets/o/x/train")


@pytest.mark.parametrize("revision", ["main", "feature/x", "refs/pr/3", "refs/convert/parquet"])
def test_addresses_have_a_revision(revision: str) -> None:
    place = parse_hub_uri(f"hf://datasets/o/x@{revision.replace('e/x', 'e%2Fx')}/a/b.parquet")
    assert (place.repository, place.revision, place.path) == ("o/x", revision, "a/b.parquet")
    assert parse_hub_uri(place.uri) == place
