"""`lorif check`, `build`, `query` and `attribute` with all defaults on a real pretrained model and real text.

    python -m benchmarks.pretrained_build --model CHECKPOINT [--paragraphs 2000 --fewer 300 --out FILE]

CHECKPOINT is the folder that `benchmarks.real_model` writes. The corpus has paragraphs of the test and the valid
part of WikiText-2. Builds with a byte budget index the first `--fewer` of them. Training steps, which compute
weight gradients but update nothing, run on the same paragraphs before and after the builds. The ratio compares the
time that a build takes for calibration, indexing and curvature with that of training on as many tokens. Memory is
the largest sampled sum of all processes of a command, in which shared memory counts once.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.processes import watched_lorif
from benchmarks.run_record import write_result
from benchmarks.wikitext import in_new_process

_TEXTS = Path("../shared/data/wikitext-2")
_PARTS = ("test.txt", "valid.txt")
_SHORTEST = 40  # characters; shorter lines are headings and remains
_BUDGETS_KIB = (4, 16, 64)
_STEPS = 6  # of training, before and after the builds
_STEP_TOKENS = 2048
_QUERIES = 16
_QUERY = "The European lobster lives in the eastern Atlantic Ocean and is caught using lobster pots ."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--texts", type=Path, default=_TEXTS)
    parser.add_argument("--paragraphs", type=int, default=2000)
    parser.add_argument("--fewer", type=int, default=300)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorif-pretrained-") as name:
        result = measure(Path(name), arguments)
    print(json.dumps(result, indent=2))
    if arguments.out:
        write_result(arguments.out, result)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all commands, with training steps before and after them."""
    paragraphs = read_paragraphs(arguments.texts)[: arguments.paragraphs]
    write_corpora(folder, paragraphs, arguments.fewer)
    model = str(arguments.model.resolve())
    steps = [in_new_process(training_seconds, model, paragraphs)]
    everything, fewer = folder / "all.yaml", folder / "fewer.yaml"
    for path in (everything, fewer):
        content = {
            "index": str(folder / f"index-{path.stem}"),
            "model": {"path": model},
            "corpus": {"uri": str(path.with_suffix(".jsonl"))},
        }
        path.write_text(yaml.safe_dump(content))
    commands = {
        "check": command(folder, "check", "-c", everything),
        "build": command(folder, "build", "-c", everything),
        "query": command(folder, "query", folder / "index-all", "--text", _QUERY),
        "attribute": command(
            folder, "attribute", "-c", everything, "--queries", folder / "queries.jsonl", "--out", folder / "out"
        ),
    }
    budgets = {}
    for kib in _BUDGETS_KIB:
        budgets[f"{kib} KiB"] = command(folder, "build", "-c", fewer, f"code.bytes={1024 * kib}")
        shutil.rmtree(folder / "index-fewer")
    steps.append(in_new_process(training_seconds, model, paragraphs))
    step = statistics.median(second for part in steps for second in part)
    return {
        "model": arguments.model.name,
        "paragraphs": len(paragraphs),
        "training_tokens_per_second": round(1 / step, 1),
        "commands": {name: summarise(row, step) for name, row in commands.items()},
        "budgets": {name: summarise(row, step) for name, row in budgets.items()},
    }


def read_paragraphs(texts: Path) -> list[str]:
    """The paragraphs, in the order of the files."""
    lines = (line.strip() for name in _PARTS for line in (texts / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if len(line) > _SHORTEST and not line.startswith("=")]


def write_corpora(folder: Path, paragraphs: list[str], fewer: int) -> None:
    """The corpus, its beginning, and queries."""
    for name, texts in (
        ("all", paragraphs), ("fewer", paragraphs[:fewer]), ("queries", paragraphs[-_QUERIES:]),
    ):  # fmt: skip
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def training_seconds(model: str, paragraphs: list[str]) -> list[float]:
    """Seconds a token of training steps on batches of full length, without an optimiser."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model).train()
    tokens = [token for text in paragraphs for token in tokenizer(text)["input_ids"]]
    seconds = []
    for start in range(_STEPS + 1):
        part = tokens[start * _STEP_TOKENS : (start + 1) * _STEP_TOKENS]
        ids = torch.tensor(part[: len(part) // 8 * 8]).view(8, -1)
        began = time.perf_counter()
        network.zero_grad(set_to_none=True)
        network(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        seconds.append((time.perf_counter() - began) / ids.numel())
    return seconds[1:]  # the first one allocates


def command(folder: Path, *words: Any) -> dict[str, Any]:
    """Run a command of `lorif`; its wall seconds, its peak and its JSON."""
    printed, seconds, watched = watched_lorif(folder, *words)
    row = {"seconds": seconds, "peak_gib": watched.peak_of_sum / 2**10, "printed": printed}
    print(words[0], json.dumps(row), flush=True)
    return row


def summarise(row: dict[str, Any], step: float) -> dict[str, Any]:
    """Wall seconds and peak; for a build also its steps, its size, and its time next to training."""
    printed = row["printed"]
    figures: dict[str, Any] = {"seconds": round(row["seconds"], 1), "peak_gib": round(row["peak_gib"], 2)}
    if "timings" in printed and "tokens" in printed:
        steps = sum(seconds for name, seconds in printed["timings"].items() if name != "start")
        figures |= {
            "rows": printed["rows"],
            "tokens": printed["tokens"],
            "timings": {name: round(seconds, 1) for name, seconds in printed["timings"].items()},
            "of_training": round(steps / (printed["tokens"] * step), 3),
        }
    return figures


if __name__ == "__main__":
    main()
