"""Seconds of the steps of `lorif build` over a small corpus, and the share that the calibration has of them.

    python -m benchmarks.calibration [--sequences 2000 --layers 4 --width 256 --rounds 3 --out FILE]

Every round builds a new index of the same real text in a new process. `calibrate`, `index` and `curvature` are the
timings of the generation: the first step that needs a worker waits until it has started and loaded the model.
`command` is the wall time of the command, with the imports, the plan, the start of Ray and Prefect, and the
publishing. Rounds of several presets are interleaved.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.run_record import write_result
from benchmarks.wikitext import gpt2_parser, in_new_process, lorif, prepare, rounded, write_config

_STEPS = ("start", "calibrate", "index", "curvature")


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="lorif-calibration-") as name:
        folder = Path(name)
        in_new_process(prepare, arguments.text, folder, arguments.sequences, arguments.layers, arguments.width)
        builds = measure(folder, arguments.presets, arguments.rounds)
    result = {
        "model": f"GPT-2, {arguments.layers} layers, width {arguments.width}",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[2], 1),
        "rounds": arguments.rounds,
        "presets": {preset: summarise(rounds) for preset, rounds in builds.items()},
    }
    print_result(result)
    if arguments.out:
        write_result(arguments.out, result)


def parse_arguments() -> argparse.Namespace:
    parser = gpt2_parser(__doc__, sequences=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=["compact", "balanced", "fine", "quality"])
    return parser.parse_args()


def measure(folder: Path, presets: list[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The JSON of every build, with the wall seconds of its command."""
    builds: dict[str, list[dict[str, Any]]] = {preset: [] for preset in presets}
    for _ in range(rounds):
        for preset in presets:
            config = write_config(folder, preset=preset)
            seconds, built = lorif("build", "-c", str(config))
            builds[preset].append({**built, "command": seconds})
            shutil.rmtree(folder / "index")
    return builds


def summarise(builds: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows, tokens, the medians of the seconds, and of the shares of the calibration."""
    steps = [{step: build["timings"][step] for step in _STEPS} for build in builds]
    return {
        "rows": builds[0]["rows"],
        "tokens": builds[0]["tokens"],
        "seconds": rounded(
            {
                **{step: statistics.median(timings[step] for timings in steps) for step in _STEPS},
                "command": statistics.median(build["command"] for build in builds),
            }
        ),
        "share_of_steps": round(
            statistics.median(timings["calibrate"] / sum(timings.values()) for timings in steps), 3
        ),
        "share_of_command": round(
            statistics.median(build["timings"]["calibrate"] / build["command"] for build in builds), 3
        ),
        "all_seconds": [
            rounded({**timings, "command": build["command"]}) for timings, build in zip(steps, builds, strict=True)
        ],
    }


def print_result(result: dict[str, Any]) -> None:
    for preset, row in result["presets"].items():
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in row["seconds"].items())
        print(
            f"{preset}: {row['rows']} rows, {seconds}; calibration {row['share_of_steps']:.1%} of the steps, "
            f"{row['share_of_command']:.1%} of the command"
        )


if __name__ == "__main__":
    main()
