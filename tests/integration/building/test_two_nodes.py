"""Invariant: no row is lost if a node disappears during a build."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL

from flows.build import build
from tasks.demo.object_store import MotoServer
from tests.integration.rows import stored_rows
from tests.integration.s3 import s3_config
from tests.patience import patience


@pytest.mark.chaos
def test_a_killed_node_does_not_change_the_rows(
    s3_server: MotoServer, prefect_server: None, ray_session: None, tmp_path: Path
) -> None:
    # as many workers as on the nodes: the threads of a worker decide how sums are rounded
    expected = s3_config(s3_server.url, "one-node", "corpus-44", compute={"workers": 2})
    build(expected)
    config = s3_config(s3_server.url, "two-nodes", "corpus-44", compute={"ray": "auto", "workers": 2})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
    run = subprocess.run(
        [sys.executable, "-m", "tests.integration.two_nodes", str(path)],
        capture_output=True, text=True, timeout=patience(300), env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["alive"] == 1 and 0 < result["finished"] < 44, "the node must be lost while shards are indexed"
    assert stored_rows(config) == stored_rows(expected)
