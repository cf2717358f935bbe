"""Writes results of benchmarks as JSON with a record of the run: date, commit, machine and torch version.

    python -m benchmarks.run_record FILE

adds the record to a result that another program has written, such as `lds.json` of `lorif evaluate lds`.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    write_result(path, json.loads(path.read_text(encoding="utf-8")))


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result with the record of this run as its key `run`, in place of a record that it may have."""
    plain = {key: value for key, value in result.items() if key != "run"}
    path.write_text(json.dumps({"run": run_record(), **plain}, indent=2) + "\n", encoding="utf-8")


def run_record() -> dict[str, str]:
    """When and where a benchmark ran."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "torch": version("torch"),
    }


def commit() -> str:
    """The commit of the working tree, with `-dirty` if files have changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.check_output(command, cwd=Path(__file__).parent, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Cores, memory and GPUs, such as `2 cores, 24 GiB, no GPU`."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    described = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "no GPU"
    return f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {described}"


if __name__ == "__main__":
    main()
