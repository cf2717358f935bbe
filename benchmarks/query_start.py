"""Seconds of `lorif query` next to a plain script that loads the same model for one forward and backward pass.

    python -m benchmarks.query_start MODEL [--paragraphs 200 --rounds 7 --index FOLDER --out FILE]

MODEL is a checkpoint, such as that of `benchmarks.real_model`. Its index, with all defaults, has paragraphs of
real text; `--index` names one that exists already. Every round runs both commands in new processes, in alternating
order, with warm page cache: `lorif query` and `benchmarks.plain_pass`. Another process measures the steps of a
query, and counts the eigendecompositions in them, of which there should be none.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.laps import Laps
from benchmarks.run_record import write_result
from benchmarks.wikitext import in_new_process, lorif, rounded

_TEXT = "The European lobster lives in the eastern Atlantic Ocean and is caught using lobster pots ."
_SHORTEST = 40  # characters of a paragraph
_DEFAULT_CORPUS = Path("../shared/data/wikitext-2/valid.txt")


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="lorif-query-start-") as name:
        index = arguments.index or build(Path(name), arguments)
        seconds = measure(index, arguments.model, arguments.rounds)
        split, eigendecompositions = in_new_process(split_query, str(index), str(arguments.model), time.time())
        result = {
            "model": described(arguments.model),
            "rows": in_new_process(rows_of, str(index)),
            "whitening_bytes": bytes_below(index / "whitening.lance"),
            "rounds": arguments.rounds,
            "seconds": rounded({name: statistics.median(values) for name, values in seconds.items()}),
            "ratio": ratio_of(seconds),
            "split": rounded(split),
            "eigendecompositions": eigendecompositions,
            "all_seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        }
    print(json.dumps(result, indent=2))
    if arguments.out:
        write_result(arguments.out, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, default=_DEFAULT_CORPUS)
    parser.add_argument("--paragraphs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def build(folder: Path, arguments: argparse.Namespace) -> Path:
    """Build the index of the first paragraphs of a text."""
    lines = (line.strip() for line in arguments.text.read_text(encoding="utf-8").splitlines())
    texts = [line for line in lines if len(line) > _SHORTEST and not line.startswith("=")]
    records = [{"id": f"p{number}", "text": text} for number, text in enumerate(texts[: arguments.paragraphs])]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    config = {
        "index": str(folder / "index"),
        "model": {"path": str(arguments.model.resolve())},
        "corpus": {"uri": str(folder / "corpus.jsonl"), "id": "id"},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    lorif("build", "-c", str(folder / "config.json"))
    return folder / "index"


def measure(index: Path, model: Path, rounds: int) -> dict[str, list[float]]:
    """Wall seconds of both commands in every round; a first round that warms the page cache does not count."""
    seconds: dict[str, list[float]] = {"plain": [], "query": []}
    for number in range(rounds + 1):
        for name in ("plain", "query") if number % 2 else ("query", "plain"):
            taken = plain(model) if name == "plain" else lorif("query", str(index), "--text", _TEXT)[0]
            seconds[name].append(taken)
        print(", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()), flush=True)
    return {name: values[1:] for name, values in seconds.items()}


def plain(model: Path) -> float:
    """Wall seconds of the plain script."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.plain_pass", str(model), _TEXT]
    subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - started


def ratio_of(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """`lorif query` over the plain script, round by round."""
    ratios = [query / alone for query, alone in zip(seconds["query"], seconds["plain"], strict=True)]
    return {"median": round(statistics.median(ratios), 3), "rounds": [round(ratio, 3) for ratio in ratios]}


def split_query(index_uri: str, model: str, launched: float) -> tuple[dict[str, float], int]:
    """Seconds of the consecutive steps of `lorif query`, and the number of its eigendecompositions."""
    laps = Laps(launched)
    from tasks.environment import fast_imports

    with fast_imports():
        from flows.questions import open_for_questions
    laps.end("import")
    import torch

    calls, eigh = [0], torch.linalg.eigh

    def counted(*matrices: Any) -> Any:
        calls[0] += 1
        return eigh(*matrices)

    torch.linalg.eigh = counted
    index, checkpoint = open_for_questions(index_uri, [], model)
    laps.end("open index")
    part = index.parts[-1]
    from lorif_core.search.query_encoder import QueryEncoder, load_matching

    loaded = load_matching(part.spec, checkpoint, index.store.storage)
    laps.end("load model")
    roots = index.store.whitenings.roots(part.spec.projection.whitening)
    encoder = QueryEncoder(loaded, part.spec, roots, factored=part.part.factored_query)
    laps.end("roots")
    from lorif_core.search.queries import as_query

    folded = index.fold([encoder.gradients([as_query(_TEXT, 0)])])
    laps.end("gradient, fold")
    (top,) = index.top_k_folded(folded, 10)
    laps.end("scan")
    hits = [hit.example_id for hit in (*top.proponents, *top.opponents)]
    index.store.rows.details(index.generation.factors_version, hits)
    laps.end("texts of hits")
    return laps.seconds, calls[0]


def described(model: Path) -> str:
    """Kind and size of a checkpoint, from its config."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return f"{config['model_type']}, {config['num_hidden_layers']} layers, width {config['hidden_size']}"


def rows_of(index_uri: str) -> int:
    """Number of rows of an index."""
    from lorif_core.search.index import open_index

    return open_index(index_uri).generation.rows


def bytes_below(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
