"""CPU seconds of `lorif build` over eight rows with a tiny model: what a build costs before it does any work.

    python -m benchmarks.start_up [--rounds 5 --before CHECKOUT --out FILE]

CHECKOUT is a folder with an earlier commit of this repository, which runs in the same environment; rounds of both
are interleaved. CPU seconds are those of the command and of all processes that it starts, sampled until each ends,
so other work on the machine hardly changes them. Prefect has no API, as on a machine where nobody has set one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from benchmarks.run_record import write_result
from benchmarks.wikitext import in_new_process, rounded

_ROWS = 8
_SAMPLE_SECONDS = 0.05
_ROLES = {
    "ray::RoleHost": "worker",
    "uvicorn": "server of Prefect",
    "ray": "Ray",
}  # the first that is in the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sources = {"now": Path(__file__).parents[1]} | ({"before": arguments.before} if arguments.before else {})
    with tempfile.TemporaryDirectory(prefix="lorif-start-") as name:
        folder = Path(name)
        in_new_process(prepare, folder)
        rounds = [
            {label: build(folder, source.resolve(), f"{label}-{number}") for label, source in sources.items()}
            for number in range(arguments.rounds)
        ]
    result = {
        "rows": _ROWS,
        "rounds": arguments.rounds,
        "cpu_seconds": {label: summarise([measured[label] for measured in rounds]) for label in sources},
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        write_result(arguments.out, result)


def prepare(folder: Path) -> None:
    """A tiny model with its tokenizer, and a corpus of a few rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.workload import train_tokenizer

    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    texts = [f"Row {number} of a small corpus." for number in range(_ROWS)]
    train_tokenizer(texts).save_pretrained(folder / "model")
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")


def build(folder: Path, source: Path, name: str) -> dict[str, float]:
    """CPU seconds by role of the processes of one build, with the code of a checkout."""
    config = folder / f"{name}.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "index": str(folder / name),
                "model": {"path": str(folder / "model")},
                "corpus": {"uri": str(folder / "corpus.jsonl")},
            }
        )
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    environment |= {"PYTHONPATH": str(source), "PREFECT_HOME": str(folder / "prefect")}
    command = [sys.executable, "-c", "from flows.cli import main; main()", "build", "-c", str(config)]
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        seconds = watched(psutil.Process(process.pid), process)
    if process.returncode:
        raise RuntimeError(f"the build of {source} failed with exit code {process.returncode}")
    return {**seconds, "all": sum(seconds.values()), "wall": time.perf_counter() - started}


def watched(root: psutil.Process, process: "subprocess.Popen[bytes]") -> dict[str, float]:
    """CPU seconds by role, sampled until the command ends."""
    seconds: dict[int, float] = {}
    roles: dict[int, str] = {root.pid: "driver"}
    while process.poll() is None:
        with suppress(psutil.Error):
            for child in [root, *root.children(recursive=True)]:
                with suppress(psutil.Error):  # it has ended
                    times = child.cpu_times()
                    seconds[child.pid] = times.user + times.system
                    if child.pid != root.pid:
                        roles[child.pid] = role(" ".join(child.cmdline()), roles.get(child.pid, "Ray"))
        time.sleep(_SAMPLE_SECONDS)
    by_role: dict[str, float] = {}
    for pid, spent in seconds.items():
        by_role[roles[pid]] = by_role.get(roles[pid], 0.0) + spent
    return by_role


def role(command: str, before: str) -> str:
    """The role of a process by its command line, which Ray changes while the process runs."""
    return next((name for part, name in _ROLES.items() if part in command), before)


def summarise(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each role, of all of them, and of the wall seconds."""
    names = sorted({name for measured in rounds for name in measured})
    return rounded({name: statistics.median(measured.get(name, 0.0) for measured in rounds) for name in names})


if __name__ == "__main__":
    main()
