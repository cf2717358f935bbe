"""Run commands in their own processes, and kill them at a chosen moment: just before the store gets a request."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect.settings import PREFECT_API_URL

from tasks.demo.object_store import MotoServer
from tasks.workers.host import end_idle_hosts
from tests.integration.lorif import LORIF
from tests.integration.s3 import BUCKET
from tests.patience import patience
from tests.servers.proxy import Fault, FaultProxy

WRITE = "^(PUT|POST|DELETE) "


@dataclass(frozen=True)
class Moment:
    """The moment before the nth request to the store that matches a pattern, as "METHOD /path?query"."""

    match: str
    nth: int = 1


def start_lorif(words: Sequence[str], errors: Path) -> subprocess.Popen[str]:
    """Run `lorif` with the session's Prefect server, as the leader of a process group."""
    end_idle_hosts()  # those of this process would reserve the cores that the command needs
    with errors.open("ab") as stderr:
        return subprocess.Popen(
            [*LORIF, *words],
            stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True,
            env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
        )  # fmt: skip


def kill_at(moment: Moment, proxy: FaultProxy, words: Sequence[str], errors: Path) -> bool:
    """Run a command behind the proxy and SIGKILL it at the moment. Returns False if it ended before the moment."""
    matching: list[str] = []

    def watch(request: str) -> None:
        if re.search(moment.match, request):
            matching.append(request)
            if len(matching) == moment.nth:
                os.killpg(process.pid, signal.SIGKILL)
                proxy.fault = Fault("reset_before")  # requests that are already under way must not arrive

    proxy.watch = watch
    process = start_lorif(words, errors)
    try:
        process.communicate(timeout=patience(240))
    finally:
        process.kill()
        proxy.watch, proxy.fault = lambda request: None, None
    assert process.returncode in (0, -signal.SIGKILL), errors.read_text()[-3000:]
    return process.returncode != 0


def copy_index(server: MotoServer, name: str, other: str) -> None:
    """Copy all objects of an index in the bucket."""
    client = server.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{name}/")
    for entry in (entry for page in pages for entry in page["Contents"]):
        key = other + entry["Key"].removeprefix(name)
        client.copy_object(Bucket=BUCKET, Key=key, CopySource={"Bucket": BUCKET, "Key": entry["Key"]})
