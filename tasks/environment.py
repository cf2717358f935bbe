"""Environment variables that Ray, Prefect and transformers read on import; import this module before them."""

import gc
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "PREFECT_CLI_PROMPT": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def quiet_libraries() -> None:
    """Turn off telemetry, prompts and progress bars of libraries; variables that the user has set stay."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    # Ray and Prefect start their servers with fork and an immediate exec, which is safe with Lance's threads
    warnings.filterwarnings("ignore", message="lance is not fork-safe")


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the length of the block; processes that start in it inherit them."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import without garbage collection: torch and transformers create a million objects that are never freed.

    Garbage collection during import and at exit takes a third of the time of a short command.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def lock_local_ray(address: str) -> None:
    """Give a private Ray a token of this process, because Ray listens beyond loopback.

    An existing cluster has its own authentication, from the user's environment.
    """
    if address == "local" and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
