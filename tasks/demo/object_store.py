"""A private object store for the demo and the tests: a moto server on 127.0.0.1."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from lorif_core.errors import LorifError, UserError

REGION = "us-east-1"
_START_SECONDS = 120.0  # on a busy machine; an idle one needs about a second


class MotoServer(AbstractContextManager["MotoServer"]):
    """A moto server in its own process for the length of a `with` block; it stores all objects in memory.

    Raises:
        UserError: moto is not installed.
        LorifError: the server does not start.
    """

    def __enter__(self) -> "MotoServer":
        if find_spec("moto") is None or find_spec("flask") is None:
            raise UserError("the object store of the demo needs moto: pip install 'lorif-pipeline[demo-s3]'")
        self.port = _free_port()
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL, stderr=self._log, start_new_session=True,
            env={**os.environ, "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(2**26)},
        )  # fmt: skip
        self._await_health()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    @property
    def url(self) -> str:
        """Endpoint of the server."""
        return f"http://127.0.0.1:{self.port}"

    def storage(self) -> dict[str, Any]:
        """The section `storage` of a CONFIG for this server."""
        return {"endpoint": self.url, "region": REGION, "allow_http": True}

    @staticmethod
    def environment() -> dict[str, str]:
        """Credentials as environment variables; moto accepts any."""
        return {
            "AWS_ACCESS_KEY_ID": "moto-key",
            "AWS_SECRET_ACCESS_KEY": "moto-secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A boto3 client."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.url, region_name=REGION, aws_access_key_id="moto-key",
            aws_secret_access_key="moto-secret",
        )  # fmt: skip

    def make_bucket(self, name: str) -> None:
        """Make a bucket."""
        self.client().create_bucket(Bucket=name)

    def _await_health(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/moto-api/", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self._log.seek(0)
        output = self._log.read().decode(errors="replace")[-500:]
        self.__exit__(None, None, None)
        raise LorifError(f"the moto server did not start: {' '.join(output.split())}")


def upload_folder(server: MotoServer, folder: Path, bucket: str, prefix: str) -> str:
    """Copy the files of a folder into a bucket; returns their common URI."""
    client = server.client()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.upload_file(str(file), bucket, f"{prefix}/{file.relative_to(folder).as_posix()}")
    return f"s3://{bucket}/{prefix}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
