"""Invariant: SIGTERM ends a build like Ctrl-C: nothing of it stays, and the same command resumes."""

import signal
import time
from pathlib import Path

import psutil
import pytest
import yaml

from lorif_core.storage.lease import current_holder
from lorif_core.storage.objects import Objects
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
