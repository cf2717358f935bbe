"""Invariant: a build works in a hostile environment, and whatever it starts listens on loopback only."""

import ipaddress
import json
import os
import subprocess
import time
from pathlib import Path

import psutil
import yaml

from tasks.workers.host import end_idle_hosts
from tests.integration.building.test_build import ROWS
from tests.integration.conftest import MakeConfig
from tests.integration.lorif import LORIF
from tests.patience import patience

DEAD_PROXY = "http://127.0.0.1:9"
PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
LATER = (
    "PREFECT_API_URL",
    "PREFECT_HOME",
    "NO_PROXY",
    "no_proxy",
    "RAY_TMPDIR",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
)


def listeners(process: psutil.Process) -> dict[tuple[str, str], int]:
    """The addresses that a process and its descendants listen on now: (program, address) -> port."""
    found = {}
    for descendant in [process, *process.children(recursive=True)]:
        try:
            for socket in descendant.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN or (not socket.raddr and socket.laddr):
                    found[descendant.name(), socket.laddr.ip] = socket.laddr.port
        except psutil.Error:  # it has just ended
            continue
    return found


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def test_a_build_needs_no_home_no_short_tmpdir_and_no_proxy_and_listens_on_loopback_only(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """It starts its own Prefect server and its own Ray; another Ray or server is not ours to judge."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(make_config(tmp_path / "index").model_dump(exclude_unset=True)))
    temporary = tmp_path / ("t" * 100)
    temporary.mkdir()
    hostile = {"HOME": "/proc/nowhere", "TMPDIR": str(temporary), **dict.fromkeys(PROXIES, DEAD_PROXY)}
    environment = {key: value for key, value in os.environ.items() if key not in LATER} | hostile
    end_idle_hosts()  # those of this process would reserve the cores that the command needs
    process = subprocess.Popen(
        [*LORIF, "build", "-c", str(config), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    seen: dict[tuple[str, str], int] = {}
    try:
        deadline = time.monotonic() + patience(240)
        while process.poll() is None and time.monotonic() < deadline:
            seen |= listeners(psutil.Process(process.pid))
            time.sleep(0.2)
    finally:
        process.kill()
    out, err = process.communicate()
    assert process.returncode == 0 and json.loads(out.splitlines()[-1])["rows"] == ROWS, err[-3000:]
    assert {"gcs_server", "raylet", "lorif"} <= {program for program, _ in seen}, "the build has been watched"
    assert len({port for _, port in seen.items()}) > 3
    assert [(*where, port) for where, port in seen.items() if not is_loopback(where[1])] == []
