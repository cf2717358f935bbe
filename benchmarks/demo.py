"""Wall time of `lorif demo`, and what its test and its recording found.

    python -m benchmarks.demo [--out FILE] [--keep FOLDER]

Nothing else may run on the machine meanwhile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.run_record import write_result

_COMMAND = "import sys; from flows.cli import main; sys.exit(main())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="folder of the demo's output, which must not exist")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorif-demo-") as name:
        result = measure(arguments.keep or Path(name) / "demo-out")
    print(json.dumps(result, indent=2))
    if arguments.out:
        write_result(arguments.out, result)


def measure(folder: Path) -> dict[str, Any]:
    """Run the demo into a folder."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", _COMMAND, "demo", "--out", str(folder)], check=True)
    seconds = time.perf_counter() - begin
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    test, change = summary["counterfactual"], summary["change"]
    return {
        "seconds": round(seconds, 1),
        "rows": summary["rows"],
        "k": test["k"],
        "answers": len(test["queries"]),
        "own_losses": dict(zip(test["queries"], test["losses"], strict=True)),
        "removals": test["removals"],
        "difference": test["difference"],
        "recorded": change["recorded"],
        "timings": summary["timings"],
    }


if __name__ == "__main__":
    main()
