"""Runs services of a compose file as processes, each with its own network, process ids, /tmp and /dev/shm.

This is a container without its image: the programs are those of this virtual environment. The hosts are network
namespaces on an isolated bridge, and their names are those of the services. It needs Linux, root and iproute2.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.infra.files import INFRA, ROOT
from tests.patience import patience

_NETWORK = "10.213.0"
_VARIABLE = re.compile(r"\$\{(\w+)(?::[?-][^}]*)?\}")
_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# the private mounts of a container; the command follows
_PRIVATE = 'mount -t tmpfs none /tmp && mount -t tmpfs -o size=2g none /dev/shm && mkdir $HOME && exec "$@"'


class Containers(AbstractContextManager["Containers"]):
    """Starts services one by one; all of them end with the block.

    Args:
        services: the services of the compose file.
        variables: the variables that `.env` would define.
    """

    def __init__(self, services: Mapping[str, dict[str, Any]], variables: Mapping[str, str]) -> None:
        self._services, self.variables = services, variables
        self._hosts = {name: f"{_NETWORK}.{number}" for number, name in enumerate(services, start=10)}
        self._run = secrets.token_hex(2)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Containers":
        with ExitStack() as stack:
            self._bin = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
            (self._bin / "join-ray").symlink_to(INFRA / "join-ray.sh")
            self._make_network(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, name: str, command: Sequence[str] | None = None) -> None:
        """Start a service; `command` replaces an entrypoint whose program is not in this environment."""
        log = (self._bin / f"{name}.log").open("wb")
        self._stack.callback(log.close)
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._space(name), *_UNSHARE,
             "sh", "-c", _PRIVATE, "sh", *(command or self._services[name]["entrypoint"])],
            env=self._environment(name), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        self._stack.callback(_end, process)
        self.processes[name] = process

    def execute(self, name: str, *command: str, stdin: str = "") -> str:
        """Run a command in a running service, as `docker compose exec` does; returns its output."""
        done = subprocess.run(
            ["nsenter", "--target", str(self._first_process(name)), "--mount", "--pid", "--net",
             "sh", "-c", 'cd "$LORIF_HOME" && exec "$@"', "sh", *command],
            env=self._environment(name), input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {(done.stdout + done.stderr)[-3000:]}\n{self.log(name)[-3000:]}"
        return done.stdout

    def await_health(self, name: str, seconds: float) -> None:
        """Wait until the healthcheck of the compose file passes in the service."""
        check = self._services[name]["healthcheck"]["test"][1:]
        deadline = time.monotonic() + patience(seconds)
        while time.monotonic() < deadline:
            assert self.processes[name].poll() is None, f"{name} ended: {self.log(name)[-3000:]}"
            try:
                self.execute(name, *check)
                return
            except (AssertionError, StopIteration):
                time.sleep(1)
        raise AssertionError(f"{name} is not healthy: {self.log(name)[-3000:]}")

    def log(self, name: str) -> str:
        """The output of a service."""
        return (self._bin / f"{name}.log").read_text(errors="replace")

    def _first_process(self, name: str) -> int:
        """The child of `unshare`, which is process 1 of the service."""
        children = Path(f"/proc/{self.processes[name].pid}/task/{self.processes[name].pid}/children")
        return next(int(child) for child in children.read_text().split())

    def _environment(self, name: str) -> dict[str, str]:
        given = self._services[name].get("environment", {})
        return {
            "PATH": f"{self._bin}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": "/tmp/home",
            "LORIF_HOME": str(ROOT),
            "LC_ALL": "C.UTF-8",
            **{key: _VARIABLE.sub(self._value, value) for key, value in given.items()},
        }

    def _value(self, match: re.Match[str]) -> str:
        return self.variables[match[1]]

    def _space(self, name: str) -> str:
        return f"lorif-{self._run}-{name}"

    def _make_network(self, stack: ExitStack) -> None:
        bridge = self._space("bridge")
        names = "".join(f"{address} {name}\n" for name, address in self._hosts.items())
        _make_space(stack, bridge, "127.0.0.1 localhost\n")
        _ip(f"-n {bridge} link add lan type bridge")
        _ip(f"-n {bridge} link set lan up")
        for number, (name, address) in enumerate(self._hosts.items()):
            space = self._space(name)
            _make_space(stack, space, f"127.0.0.1 localhost\n{names}")
            _ip(f"-n {bridge} link add port{number} type veth peer name eth0 netns {space}")
            _ip(f"-n {bridge} link set port{number} master lan up")
            _ip(f"-n {space} address add {address}/24 dev eth0")
            _ip(f"-n {space} link set eth0 up")
            # the route leads nowhere, but Ray and others use it to find their own address
            _ip(f"-n {space} route add default via {_NETWORK}.1")


def _make_space(stack: ExitStack, name: str, hosts: str) -> None:
    _ip(f"netns add {name}")
    stack.callback(_ip, f"netns delete {name}")
    _ip(f"-n {name} link set lo up")
    folder = Path("/etc/netns") / name
    folder.mkdir(parents=True)
    stack.callback(folder.rmdir)
    # without a name server that answers or refuses at once, Ray waits for one before it reads /etc/hosts
    for name, text in {"hosts": hosts, "resolv.conf": "nameserver 127.0.0.1\n"}.items():
        (folder / name).write_text(text)
        stack.callback((folder / name).unlink)


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)  # with --kill-child its processes are killed too
    process.wait()
