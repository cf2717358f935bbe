"""Invariant: SIGTERM ends a build like Ctrl-C, and it can be resumed; a build by itself needs no server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from lorif_core.storage.lease import current_holder
from lorif_core.storage.objects import Objects
from tasks.workers.host import end_idle_hosts
from tests.integration.building.test_build import ROWS
from tests.integration.conftest import MakeConfig
from tests.integration.killing import start_lorif
from tests.patience import patience
from tests.processes import wait_for_end


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_build_in_order_and_it_can_be_resumed(
    number: int, code: int, make_config: MakeConfig, prefect_server: None, ray_session: None, tmp_path: Path
) -> None:
    from flows.build import build

    config = make_config(tmp_path / "index")
    path, errors = tmp_path / "config.yaml", tmp_path / "errors"
    path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    objects = Objects(config.index, config.storage)
    process = start_lorif(["build", "-c", str(path)], errors)
    try:
        deadline = time.monotonic() + patience(120)
        while current_holder(objects) is None or not psutil.Process(process.pid).children():  # Ray starts
            assert process.poll() is None and time.monotonic() < deadline, errors.read_text()
            time.sleep(0.02)
        started = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(number)
        assert process.wait(patience(60)) == code, errors.read_text()
    finally:
        process.kill()
    wait_for_end(started)
    assert current_holder(objects) is None, "the lease is released"
    last = errors.read_text().splitlines()[-1]
    assert last.startswith("lorif: error:") and last.endswith("run the same command again to resume")
    assert "Traceback" not in errors.read_text()
    assert build(config).rows == ROWS


def test_a_build_without_an_api_of_prefect_starts_no_server(
    make_config: MakeConfig, prefect_server: None, ray_session: None, tmp_path: Path
) -> None:
    from flows.build import build

    config = make_config(tmp_path / "index")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    end_idle_hosts()  # those of this process would reserve the cores that the command needs
    code = (
        "import sys; from flows.cli import parse_command, run; "
        "code = run(parse_command(sys.argv[1:])); sys.exit(3 if 'prefect' in sys.modules else code)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = subprocess.run(
        [sys.executable, "-c", code, "build", "-c", str(path)], cwd=tmp_path, check=False, capture_output=True,
        text=True, env={**clean, "HOME": str(tmp_path)}, timeout=patience(240),
    )  # fmt: skip
    assert command.returncode == 0, command.stderr
    (receipt,) = (Path(config.index) / "_lorif" / "runs").iterdir()
    run = json.loads(receipt.read_text())
    assert run["published"] and run["rows"] == ROWS and run["name"] == f"build {config.index}"
    assert run["deployment"] is None and receipt.stem == run["run"]
    assert build(config).generation == 1, "nothing has changed, and Prefect runs the same flow"
    assert len(list(receipt.parent.iterdir())) == 2
