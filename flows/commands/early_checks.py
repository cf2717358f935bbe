"""Checks of packages and local paths before torch, Ray and Lance are imported, which takes seconds.

Commands check the same places again, wherever they are, when they use them.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.commands import EXTRAS
from lorif_core.errors import UserError

_PACKAGES = {"build": "ray", "serve": "uvicorn", "evaluate": "matplotlib"}  # each is installed by its extra only
_FILES = {"queries": "queries file", "ids": "ids file"}


def check_early(command: str, options: Mapping[str, Any]) -> None:
    """Check what the options of a command name.

    Raises:
        UserError: an extra is not installed, a local file or index does not exist, or an output exists already.
    """
    require_extras(f"lorif {command}", EXTRAS.get(command, ()))
    if "index" in options:
        _require_index(options["index"])
    for name, kind in _FILES.items():
        if options.get(name) is not None:
            require_file(options[name], kind)
    if command == "evaluate":
        require_file(options["config"], "evaluation file")
    if command == "demo":
        _require_empty(Path(options["out"]))
    if command == "select" and Path(options["out"]).exists():
        raise UserError(f"--out {options['out']} exists already; name a new file")


def _require_empty(folder: Path) -> None:
    """Raise UserError if the folder of an output is a file, or has files."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a new or empty folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--out {folder} is not empty; name a new or empty folder")


def require_extras(name: str, extras: tuple[str, ...]) -> None:
    """Raise UserError unless the packages of all extras are installed; `name` is the command."""
    missing = [extra for extra in extras if find_spec(_PACKAGES[extra]) is None]
    if missing:
        wanted = f"lorif-pipeline[{','.join(missing)}]"
        raise UserError(f"{name} needs packages that are not installed: pip install '{wanted}'")


def require_file(path: str, kind: str) -> None:
    """Raise UserError if a local file or folder is missing."""
    if "://" not in path and not Path(path).expanduser().exists():
        raise UserError(f"the {kind} {path} cannot be read: it does not exist")


def _require_index(index: str) -> None:
    path = Path(index).expanduser()
    if "://" in index or path.is_dir():
        return
    if path.exists():
        raise UserError(f"{index} is a file; name the folder or URI of an index")
    raise UserError(f"the index {index} does not exist; run lorif build first")
