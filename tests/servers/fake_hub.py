"""A Hugging Face hub on this machine: the part of its HTTP interface that reading datasets needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class FakeHub:
    """Datasets with their commits, and the bytes that were sent of each file.

    Attributes:
        url: address of the server.
        commits: files of each commit, by dataset and commit, in the order of the commits.
        branches: commit of each branch, by dataset and branch.
        gated: datasets that no token may read.
        sent: bytes that were sent of each path.
    """

    url: str = ""
    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    sent: dict[str, int] = field(default_factory=dict)

    def commit(self, dataset: str, files: Files, branch: str = "main") -> str:
        """Add a commit with all files of a dataset; returns its id."""
        name = hashlib.sha1(repr((dataset, len(self.commits.get(dataset, {})), branch)).encode()).hexdigest()
        self.commits.setdefault(dataset, {})[name] = files
        self.branches.setdefault(dataset, {})[branch] = name
        return name


def blob_id(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve datasets until the block ends."""
    hub = FakeHub()

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "datasets"]:
            self._api("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "datasets" and parts[3] == "resolve":
            self._file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self._answer(404, b"", {})

    def _files(self, dataset: str, revision: str) -> tuple[str, Files] | None:
        """The commit of a revision and its files; None after an error was sent."""
        if dataset in self.served.gated:
            return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if dataset not in self.served.commits:
            return self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        commit = self.served.branches[dataset].get(revision, revision)
        if commit not in self.served.commits[dataset]:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return commit, self.served.commits[dataset][commit]

    def _api(self, dataset: str, rest: list[str]) -> None:
        found = self._files(dataset, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return
        commit, files = found
        if not rest or rest[0] == "revision":
            self._json(
                {"id": dataset, "sha": commit, "private": False, "gated": False, "tags": [], "siblings": []}
            )
            return
        assert rest[0] == "tree"
        folder, recursive = "/".join(rest[2:]), "recursive=true" in self.path.lower()
        prefix, entries = f"{folder}/" if folder else "", dict[str, Any]()
        for path, content in files.items():
            if not path.startswith(prefix):
                continue
            inner = path.removeprefix(prefix).split("/")
            for depth in range(1, len(inner)):
                parent = prefix + "/".join(inner[:depth])
                entries[parent] = {"type": "directory", "path": parent, "oid": blob_id(b""), "size": 0}
            entries[path] = {"type": "file", "path": path, "oid": blob_id(content), "size": len(content)}
        listed = [entry for path, entry in entries.items() if recursive or "/" not in path.removeprefix(prefix)]
        if not listed:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        self._json(listed)

    def _file(self, dataset: str, revision: str, path: str) -> None:
        found = self._files(dataset, revision)
        if found is None:
            return
        commit, files = found
        if path not in files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content, status = files[path], 200
        headers = {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if range_ := self.headers.get("Range"):
            first, last = range_.removeprefix("bytes=").split("-")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[int(first) : int(last) + 1], 206
        if self.command == "GET":
            self.served.sent[path] = self.served.sent.get(path, 0) + len(content)
        self._answer(status, content, headers)

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
