"""Start a private Ray, which listens on loopback only, or connect to a cluster; our signal handlers stay."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from types import FrameType
from unittest.mock import patch

import ray
import ray._private.utils
from ray._private import ray_constants
from ray._private.node import Node
from ray.util import get_node_ip_address

from lorif_core.errors import LorifError
from lorif_core.storage.faults import one_line
from tasks.folders import private_ray_folder

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 2.0


def start_private_ray() -> None:
    """Start a Ray of this process that only this machine can reach.

    Raises:
        UserError: there is no folder for its files.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token":
        log.warning(
            "other users of this machine can reach this private Ray without a token; set RAY_AUTH_MODE=token"
        )
    with _on_loopback(), _few_processes(), _own_sigterm_handler(), _late_signals():
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            _temp_dir=private_ray_folder(),
        )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a Ray that starts in the block listen on loopback only, with all its processes.

    This is what Ray does on Windows and macOS, where it has no clusters of several machines. On Linux it replaces
    every address of loopback by one that other machines can reach, so an argument does not suffice.
    """
    with patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


@contextmanager
def _few_processes() -> Iterator[None]:
    """Leave out processes of a Ray that starts in the block: those that autoscale, report usage and collect logs.

    Each imports Ray, and `ray.init` has no arguments for them.
    """
    with ExitStack() as patches:
        for name in ("start_monitor", "start_api_server", "start_log_monitor"):
            patches.enter_context(patch.object(Node, name, lambda *_, **__: None))
        yield


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM while Ray starts: Ray would install one that ends the process uncleanly."""
    with patch.object(ray._private.utils, "set_sigterm_handler", lambda _: None):
        yield


@contextmanager
def _late_signals() -> Iterator[None]:
    """Let a signal take effect at the end of the block, and a second one at once.

    Ray forks with hooks. An exception of a handler would get lost in a hook, and the lock of logging stay locked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    arrived: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) > 1:
            with suppress(BaseException):  # what the second signal does is what counts
                take_effect()
            signal.raise_signal(number)

    def take_effect() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        first = arrived[:1]
        arrived.clear()
        for waiting in first:
            signal.raise_signal(waiting)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        take_effect()


def attach_to_ray(address: str) -> None:
    """Connect to a running cluster.

    Raises:
        LorifError: no cluster answers at the address.
    """
    try:
        with _own_sigterm_handler(), _on_loopback() if _is_private(address) else nullcontext():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise LorifError(
            f"no Ray cluster answers at compute.ray = {address!r}: {one_line(error)}; start "
            f"one, or set compute.ray=local"
        ) from None


def _is_private(address: str) -> bool:
    """Whether an address is on loopback and nothing answers at its port at the address of this machine."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdigit():
        return False
    try:
        socket.create_connection((get_node_ip_address(), int(port)), _CONNECT_SECONDS).close()
    except OSError:
        return True
    return False
