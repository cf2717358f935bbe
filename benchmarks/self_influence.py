"""What a code does to self-influence and to normalised scores, next to full gradients.

    python -m benchmarks.self_influence CONFIG [--queries FILE --out FILE]

Takes the model and the corpus of CONFIG, no index; the metric is that of the preset's projection (no curvature).
Per preset: the ratio of |decoded|^2 to |G|^2 over examples, the rank correlation of the two, and for `cosine` the
rank correlation, over examples and in the mean over queries, with the cosine of full gradients when s(x, x) is
|decoded|^2, as it is in an index, and when it is |G|^2, which an index does not keep; and that of plain scores
with plain scores of full gradients. Without --queries every 25th example asks and is not among the rows.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lorif_core.config import Config
from lorif_core.config_file import load_config, parse_config
from lorif_core.corpus.batches import collate, token_budget_batches
from lorif_core.corpus.shards import list_shards
from lorif_core.corpus.tokenise import Example
from lorif_core.evaluation.lds import rank_correlation
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.lifecycle.index_shard import read_examples
from lorif_core.lifecycle.plan import make_plan
from lorif_core.model.loading import LoadedModel, load_model
from lorif_core.presets import PRESETS
from lorif_core.search.queries import query_example, read_queries
from lorif_core.spec import CodeSpec

_EVERY = 25


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one preset; see the module. `ratio` has the 5th, 50th and 95th percentiles."""

    preset: str
    ratio: tuple[float, ...]
    own_correlation: float
    cosine_decoded: float
    cosine_full: float
    not_normalised: float


def measure(
    preset: str, config: Config, loaded: LoadedModel, rows: Sequence[Example], asked: Sequence[Example]
) -> Figures:
    """Encode all rows under a preset and compare what decodes with full gradients in its metric.

    Dot products of N rows and Q queries, full and decoded, a batch of rows in memory at a time.
    """
    spec = make_plan(config).spec
    covariances = None
    if spec.projection.kind == "whitened":
        calibrator = Calibrator(loaded, spec.layers, replace(spec.projection, kind="random"))
        for indices in _batches(rows):
            calibrator.add(collate(rows, indices))
        covariances = calibrator.covariances
    dense = Extractor(loaded, spec.layers, spec.projection, CodeSpec("dense", 1, "float32"), covariances)
    coded = Extractor(loaded, spec.layers, spec.projection, spec.code, covariances)
    layout = CodeLayout(spec.layers, spec.code)

    queries = _gradients(dense, asked)
    full, kept = (np.zeros((len(rows), len(asked) + 1)) for _ in range(2))  # the last column is |G|^2
    for indices in _batches(rows):
        batch = collate(rows, indices)
        _, gradients = dense.gradients(batch)
        found = coded.extract(batch)
        codes, scales = torch.from_numpy(found.codes), torch.from_numpy(found.scales)
        decoded = [layout.decode(codes, scales, layer) for layer in range(len(spec.layers))]
        for into, layers in ((full, gradients), (kept, decoded)):
            for layer, query_QD in zip(layers, queries, strict=True):
                into[indices, :-1] += (layer @ query_QD.T).numpy()
                into[indices, -1] += layer.square().sum(dim=1).numpy()
    ratio = kept[:, -1] / full[:, -1]
    true = full[:, :-1] / np.sqrt(full[:, -1:])
    return Figures(
        preset,
        tuple(np.percentile(ratio, [5, 50, 95]).round(3).tolist()),
        float(rank_correlation(kept[:, -1:], full[:, -1:])[0]),
        float(rank_correlation(kept[:, :-1] / np.sqrt(kept[:, -1:]), true).mean()),
        float(rank_correlation(kept[:, :-1] / np.sqrt(full[:, -1:]), true).mean()),
        float(rank_correlation(kept[:, :-1], full[:, :-1]).mean()),
    )


def _gradients(dense: Extractor, examples: Sequence[Example]) -> list[torch.Tensor]:
    """Per layer (Q, D)."""
    found = [dense.gradients(collate(examples, [row]))[1] for row in range(len(examples))]
    return [torch.cat(layer) for layer in zip(*found, strict=True)]


def _batches(rows: Sequence[Example]) -> list[list[int]]:
    return token_budget_batches([len(row.input_ids) for row in rows], 4096)


def main() -> None:
    """Measure all presets, print a line each, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", help="CONFIG with model and corpus")
    parser.add_argument("--queries", help="queries file; without it every 25th example asks")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    config = load_config(arguments.config, [])
    loaded = load_model(config.model, config.storage)
    shards = list_shards(config.corpus, config.storage).shards
    rows = [row for shard in shards for row in read_examples(shard, config, loaded) if row.scored]
    asked: Sequence[Example] = rows[::_EVERY]
    if arguments.queries:
        asked = [
            query_example(query, loaded.tokenizer, loaded.vocab_size, config.corpus.max_length)
            for query in read_queries(arguments.queries, config.storage)
        ]
    else:
        rows = [row for number, row in enumerate(rows) if number % _EVERY]
    found = []
    for preset in arguments.presets:
        raw = config.model_dump(exclude_unset=True)
        kept = {key: value for key, value in raw.items() if key in ("model", "corpus", "compute", "storage")}
        with tempfile.TemporaryDirectory() as folder:
            chosen = parse_config({**kept, "index": f"{folder}/index", "preset": preset})
            found.append(measure(preset, chosen, loaded, rows, asked))
        print(found[-1])
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(figures) for figures in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
