"""OpenStack Swift with its S3 interface on 127.0.0.1: a real object store, from its own virtual environment.

Unlike moto it checks credentials, stores a multipart upload as a manifest of its parts, and applies If-None-Match,
but not atomically.
"""

import errno
import getpass
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from lorif_core.errors import LorifError, UserError
from tests.patience import patience

REGION = "us-east-1"
OWNER = "lorif:owner"
GUEST = "lorif:guest"  # of the owner's account, where it has no rights
STRANGER = "other:owner"  # of another account, with buckets of its own
_KINDS = ("account", "container", "object", "proxy")
_START_SECONDS = 60.0
_VENV = Path(__file__).parents[2] / ".venv-swift"

# one device on one node has every partition of the three rings
_MAKE_RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in zip(("account", "container", "object"), sys.argv[2:]):
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
    builder.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="disk", weight=1))
    builder.rebalance(seed=1)
    builder.get_ring().save(f"{sys.argv[1]}/{name}.ring.gz")
"""
_SWIFT = """
[swift-hash]
swift_hash_path_suffix = lorif
"""
# the console has the log; the copy for syslog goes to a port that discards it
_EVERY_SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}
mount_check = false
log_level = WARNING
log_udp_host = 127.0.0.1
log_udp_port = 9
[filter:healthcheck]
use = egg:swift#healthcheck
[app:{kind}-server]
use = egg:swift#{kind}
conn_timeout = 10
node_timeout = 60
"""
# no updater runs here that would add late entries to a listing, so a PUT waits for its listing entry
_STORAGE = """container_update_timeout = 60
[pipeline:main]
pipeline = healthcheck {kind}-server
"""
# a slow response must not make the proxy avoid the only device
_PROXY = """account_autocreate = true
error_suppression_limit = 1000000
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats s3api tempauth bulk copy slo dlo versioned_writes proxy-server
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_lorif_owner = {owner} .admin
user_lorif_guest = {guest}
user_other_owner = {stranger} .admin
[filter:bulk]
use = egg:swift#bulk
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
"""  # noqa: E501 - one pipeline is one line


class SwiftServer(AbstractContextManager["SwiftServer"]):
    """Context manager that runs the four servers of Swift as processes, and removes their data at the end.

    Args:
        venv: the environment in which Swift is installed; the default is LORIF_SWIFT, else `.venv-swift`, which
            `make test-s3` creates.

    Attributes:
        folder: the folder to which the servers write.

    Raises:
        UserError: Swift is not installed, or the folder for temporary files cannot store its objects.
        LorifError: a server does not start.
    """

    def __init__(self, venv: Path | None = None) -> None:
        self._venv = (venv or Path(os.environ.get("LORIF_SWIFT") or _VENV)).absolute()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._secrets = {user: secrets.token_hex(16) for user in (OWNER, GUEST, STRANGER)}

    def __enter__(self) -> "SwiftServer":
        if not (self._venv / "bin" / "swift-proxy-server").exists():
            raise UserError(
                f"Swift is not installed in {self._venv}; run make test-s3 to install it, or set LORIF_SWIFT"
            )
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swift-")))
            _require_attributes(self.folder)
            self._ports = dict(zip(_KINDS, _free_ports(len(_KINDS)), strict=True))
            self._configure()
            for kind in _KINDS:
                process = self._start(kind)
                stack.callback(_kill, process)
                self._processes[kind] = process
            for kind in _KINDS:
                self._await_health(kind)
            self._stack = stack.pop_all()  # __exit__ now ends the processes
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The endpoint of the proxy server."""
        return f"http://127.0.0.1:{self._ports['proxy']}"

    def storage(self) -> dict[str, Any]:
        """The `storage` section of a CONFIG."""
        return {"endpoint": self.url, "region": REGION, "allow_http": True}

    def environment(self, user: str = OWNER) -> dict[str, str]:
        """Environment variables with the credentials of a user."""
        return {
            "AWS_ACCESS_KEY_ID": user,
            "AWS_SECRET_ACCESS_KEY": self._secrets[user],
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, user: str = OWNER) -> Any:
        """A boto3 client with the credentials of a user."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.url, region_name=REGION, aws_access_key_id=user,
            aws_secret_access_key=self._secrets[user],
        )  # fmt: skip

    def make_bucket(self, name: str) -> None:
        """Create a bucket of the owner."""
        self.client().create_bucket(Bucket=name)

    def _configure(self) -> None:
        (self.folder / "disk").mkdir()
        (self.folder / "swift.conf").write_text(_SWIFT)
        for kind, port in self._ports.items():
            text = (_EVERY_SERVER + (_PROXY if kind == "proxy" else _STORAGE)).format(
                kind=kind, port=port, folder=self.folder, user=getpass.getuser(),
                owner=self._secrets[OWNER], guest=self._secrets[GUEST], stranger=self._secrets[STRANGER],
            )  # fmt: skip
            (self.folder / f"{kind}.conf").write_text(text)
        ports = [str(self._ports[kind]) for kind in _KINDS[:3]]
        completed = subprocess.run(
            [self._venv / "bin" / "python", "-c", _MAKE_RINGS, self.folder, *ports],
            capture_output=True,
            text=True,
        )
        if completed.returncode:
            raise LorifError(f"the rings of Swift could not be made: {' '.join(completed.stderr.split())[-500:]}")

    def _start(self, kind: str) -> "subprocess.Popen[bytes]":
        with self._log(kind).open("wb") as log:
            return subprocess.Popen(
                [self._venv / "bin" / f"swift-{kind}-server", self.folder / f"{kind}.conf", "--verbose"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _log(self, kind: str) -> Path:
        return self.folder / f"{kind}.log"

    def _await_health(self, kind: str) -> None:
        deadline = time.monotonic() + patience(_START_SECONDS)
        while time.monotonic() < deadline and self._processes[kind].poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[kind]}/healthcheck", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        log = self._log(kind).read_text(errors="replace")[-500:]
        raise LorifError(f"the {kind} server of Swift did not start: {' '.join(log.split())}")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _require_attributes(folder: Path) -> None:
    """Check for extended attributes, in which Swift stores metadata and which some file systems lack."""
    try:
        os.setxattr(folder, "user.lorif", b"")
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        raise UserError(
            f"the file system of {folder.parent} has no extended attributes, which Swift needs; set TMPDIR to "
            f"another folder"
        ) from None


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
