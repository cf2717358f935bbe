"""Invariant: a build killed with all its processes, and run again, ends with the rows of one never killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lorif_core.config import Config
from lorif_core.store import Store
from tests.integration.conftest import MakeConfig
from tests.integration.test_build import ROWS, stored_rows

LORIF = [str(Path(sys.executable).parent / "lorif")]


def start_build(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LORIF, "build", "-c", str(config), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_fragments(index: Path, process: subprocess.Popen[str]) -> None:
    """Until a worker has written rows that nobody has committed yet."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any((index / "factors.lance" / "data").glob("*")):
            return
        time.sleep(0.02)
    pytest.fail(f"the build wrote nothing: {process.communicate()[1][-2000:]}")


def test_a_killed_build_resumes_to_the_same_rows(make_config: MakeConfig, built: Config, tmp_path: Path) -> None:
    index = tmp_path / "index"
    config = make_config(index, code={"dtype": "float32"}, compute={"workers": 1})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    process = start_build(path)
    wait_for_fragments(index, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert Store(str(index)).generations() == [], "a killed run must publish nothing"
    out, err = start_build(path).communicate(timeout=240)
    assert json.loads(out.splitlines()[-1])["rows"] == ROWS, err[-2000:]
    assert set(stored_rows(config)) == set(stored_rows(built))
