"""Environment variables that Ray, Prefect and transformers read on import; import this module before them."""

import gc
import os
import secrets
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tasks.folders import private_ray_folder, provide_home

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
_PREFECT_VARIABLES = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def quiet_libraries() -> None:
    """Turn off telemetry, prompts and progress bars of libraries; variables that the user has set stay."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    # Ray and Prefect start their servers with fork and an immediate exec, which is safe with Lance's threads
    warnings.filterwarnings("ignore", message="lance is not fork-safe")


def exempt_loopback() -> None:
    """Let no proxy of the environment come between us and our own servers, which listen on loopback.

    Some libraries read `no_proxy`, others `NO_PROXY`, and Python ignores the second if the first exists.
    """
    values = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    for name, value in values.items():
        others = next((other for other in values.values() if other is not None), "")
        hosts = [host.strip() for host in (others if value is None else value).split(",") if host.strip()]
        if hosts != ["*"]:  # all hosts; this works only on its own
            os.environ[name] = ",".join([*hosts, *(host for host in _LOOPBACK if host not in hosts)])


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


def has_prefect_api() -> bool:
    """Whether Prefect has an API to report to, by the environment or by its own files.

    Prefect is imported, which takes a second, only if one of them mentions it.
    """
    if "prefect" not in sys.modules and not _mentions_prefect():
        return False
    from prefect.settings import get_current_settings

    return get_current_settings().api.url is not None


def _mentions_prefect() -> bool:
    if any(name in os.environ for name in _PREFECT_VARIABLES):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    if (home / "profiles.toml").exists() or Path("prefect.toml").exists():
        return True
    files = {Path(".env"): "PREFECT_API_URL", Path("pyproject.toml"): "[tool.prefect"}
    return any(
        path.is_file() and os.access(path, os.R_OK) and text in path.read_text(errors="replace")
        for path, text in files.items()
    )


def prepare_run(ray: str) -> None:
    """Prepare what Prefect and Ray need on this machine, before either of them is imported.

    A private Ray gets a token of this process, because other users of the machine can connect to it. An existing
    cluster has its own authentication, from the user's environment.

    Args:
        ray: `compute.ray`.

    Raises:
        UserError: there is no folder for the files of Prefect or of a private Ray.
    """
    provide_home()
    if ray != "local":
        return
    private_ray_folder()
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
