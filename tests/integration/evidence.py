"""Collects everything that runs of `lorif` leave behind: output, files, objects, and Prefect's database."""

import os
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from prefect.settings import PREFECT_API_URL

from lorif_core.config import Config
from tasks.demo.object_store import MotoServer
from tests.integration.lorif import LORIF
from tests.integration.s3 import BUCKET
from tests.patience import patience


@dataclass
class Evidence:
    """Everything that some runs left behind: kind of place -> name -> content."""

    contents: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def add(self, place: str, name: str, content: str | bytes) -> None:
        self.contents.setdefault(place, {})[name] = content.encode() if isinstance(content, str) else content

    def add_folder(self, place: str, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                self.add(place, str(path.relative_to(folder)), path.read_bytes())

    def add_objects(self, place: str, server: MotoServer, prefix: str) -> None:
        pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        for entry in (entry for listing in pages for entry in listing.get("Contents", [])):
            body = server.client().get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
            self.add(place, entry["Key"], body)

    def add_database(self, path: str) -> None:
        """Add every table of Prefect's database; the tables of `PREFECT_PLACES` have a place of their own."""
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for name in names:
                rows = database.execute(f'SELECT * FROM "{name}"').fetchall()
                self.add(PREFECT_PLACES.get(name, "prefect: the rest"), name, "\n".join(map(repr, rows)))


PREFECT_PLACES = {
    "flow_run": "prefect: parameters",
    "task_run": "prefect: tasks",
    "flow_run_state": "prefect: states",
    "task_run_state": "prefect: task states",
    "log": "prefect: logs",
    "artifact": "prefect: artifacts",
    "events": "prefect: events",
}


class RecordedCommands:
    """Runs `lorif` in its own processes, with the planted credentials and in folders of its own."""

    def __init__(self, config: Config, credentials: Mapping[str, str], folder: Path) -> None:
        self.evidence = Evidence()
        self.folder = folder  # its path must be short, because Ray creates sockets in it
        self.config = str(folder / "config.yaml")
        Path(self.config).write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
        folders = {"RAY_TMPDIR": "ray", "LORIF_CACHE": "cache", "PREFECT_HOME": "prefect", "TMPDIR": "tmp"}
        for name in folders.values():
            (folder / name).mkdir()
        paths = {key: str(folder / name) for key, name in folders.items()}
        self._environment = {**os.environ, **credentials, **paths, "PREFECT_API_URL": PREFECT_API_URL.value()}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*LORIF, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self._environment,
        )  # fmt: skip

    def finish(self, name: str, process: subprocess.Popen[bytes]) -> int:
        out, err = process.communicate(timeout=patience(240))
        self.evidence.add("output", f"{name} stdout", out)
        self.evidence.add("output", f"{name} stderr", err)
        return process.returncode

    def output(self, name: str) -> str:
        return "".join(
            self.evidence.contents["output"][f"{name} {where}"].decode() for where in ("stdout", "stderr")
        )
