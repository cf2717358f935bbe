"""Effect of a code on self-influence and on normalised scores, compared with full gradients.

    python -m benchmarks.self_influence CONFIG [--queries FILE --out FILE]

It uses the model and the corpus of CONFIG and needs no index; the metric is that of the preset's projection,
without curvature. It measures per preset, over examples:
- the ratio of |decoded|^2 to |G|^2 and the rank correlation of the two;
- the rank correlation of `cosine` scores with the cosine of full gradients, if s(x, x) is |decoded|^2, as in an
  index, and if it is |G|^2, which an index does not store;
- the rank correlation of plain scores with plain scores of full gradients;
- the same with gradients that are not projected: the exact scores of the layers that the preset tracks.
Correlations of scores are means over queries. Without --queries, every 25th example is a query and not a row.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.run_record import write_result
from lorif_core.config import Config
from lorif_core.config_file import load_config, parse_config
from lorif_core.corpus.batches import collate, token_budget_batches
from lorif_core.corpus.shards import list_shards
from lorif_core.corpus.tokenise import Example
from lorif_core.evaluation.lds import rank_correlation
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.gradients.roots import SideMatrices, exact_roots
from lorif_core.lifecycle.index_shard import read_examples
from lorif_core.lifecycle.plan import make_plan
from lorif_core.model.loading import LoadedModel, load_model
from lorif_core.presets import PRESETS
from lorif_core.search.queries import query_example, read_queries
from lorif_core.spec import CodeSpec, IndexSpec, LayerSpec, ProjectionSpec

_EVERY = 25
_DENSE = CodeSpec("dense", 1, "float32")


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one preset; see the module. `ratio` has the 5th, 50th and 95th percentiles."""

    preset: str
    ratio: tuple[float, ...]
    own_correlation: float
    cosine_decoded: float
    cosine_full: float
    not_normalised: float
    exact: float


def measure(
    preset: str, config: Config, loaded: LoadedModel, rows: Sequence[Example], queries: Sequence[Example]
) -> Figures:
    """Encode all rows under a preset and compare decoded with full gradients in its metric.

    One batch of rows is in memory at a time; only the dot products of all rows and queries are stored.
    """
    spec = make_plan(config).spec
    roots = _roots(loaded, spec.layers, spec.projection, rows)
    dense = Extractor(loaded, spec.layers, spec.projection, _DENSE, roots)
    coded = Extractor(loaded, spec.layers, spec.projection, spec.code, roots)
    whole = _without_projection(loaded, spec, rows)
    layout = CodeLayout(spec.layers, spec.code)

    query_gradients, whole_query_gradients = _gradients(dense, queries), _gradients(whole, queries)
    full, coded_sums = (np.zeros((len(rows), len(queries) + 1)) for _ in range(2))  # the last column is |G|^2
    exact = np.zeros_like(full)
    for indices in _batches(rows):
        batch = collate(rows, indices)
        _, gradients = dense.gradients(batch)
        _, whole_gradients = whole.gradients(batch)
        extracted = coded.extract(batch)
        codes, scales = torch.from_numpy(extracted.codes), torch.from_numpy(extracted.scales)
        decoded = [layout.decode(codes, scales, layer) for layer in range(len(spec.layers))]
        _add_products(full, indices, gradients, query_gradients)
        _add_products(coded_sums, indices, decoded, query_gradients)
        _add_products(exact, indices, whole_gradients, whole_query_gradients)
    ratio = coded_sums[:, -1] / full[:, -1]
    cosine = full[:, :-1] / np.sqrt(full[:, -1:])
    return Figures(
        preset,
        tuple(np.percentile(ratio, [5, 50, 95]).round(3).tolist()),
        float(rank_correlation(coded_sums[:, -1:], full[:, -1:])[0]),
        float(rank_correlation(coded_sums[:, :-1] / np.sqrt(coded_sums[:, -1:]), cosine).mean()),
        float(rank_correlation(coded_sums[:, :-1] / np.sqrt(full[:, -1:]), cosine).mean()),
        float(rank_correlation(coded_sums[:, :-1], full[:, :-1]).mean()),
        float(rank_correlation(coded_sums[:, :-1], exact[:, :-1]).mean()),
    )


def _without_projection(loaded: LoadedModel, spec: IndexSpec, rows: Sequence[Example]) -> Extractor:
    """An extractor of whole gradients of the tracked layers, which are whitened if the preset whitens."""
    layers = tuple(replace(layer, d1=layer.in_features, d2=layer.out_features) for layer in spec.layers)
    projection = ProjectionSpec("whitened" if spec.projection.is_whitened else "random", factor=1)
    return Extractor(loaded, layers, projection, _DENSE, _roots(loaded, layers, projection, rows))


def _roots(
    loaded: LoadedModel, layers: tuple[LayerSpec, ...], projection: ProjectionSpec, rows: Sequence[Example]
) -> SideMatrices | None:
    """Those of all rows; None without whitening."""
    if not projection.is_whitened:
        return None
    calibrator = Calibrator(loaded, layers, projection)
    for indices in _batches(rows):
        calibrator.add(collate(rows, indices))
    return exact_roots(calibrator.covariances)


def _add_products(
    sums: np.ndarray, indices: list[int], gradients: list[torch.Tensor], query_gradients: list[torch.Tensor]
) -> None:
    """Add products (B, Q + 1) of the gradients (B, D) of all layers; the last column is |G|^2."""
    for G_BD, query_QD in zip(gradients, query_gradients, strict=True):
        sums[indices, :-1] += (G_BD @ query_QD.T).numpy()
        sums[indices, -1] += G_BD.square().sum(dim=1).numpy()


def _gradients(dense: Extractor, examples: Sequence[Example]) -> list[torch.Tensor]:
    """Per layer the gradients (Q, D) of all examples."""
    by_example = [dense.gradients(collate(examples, [row]))[1] for row in range(len(examples))]
    return [torch.cat(layer) for layer in zip(*by_example, strict=True)]


def _batches(rows: Sequence[Example]) -> list[list[int]]:
    return token_budget_batches([len(row.input_ids) for row in rows], 4096)


def main() -> None:
    """Measure all presets, print one line each, and write JSON if --out is set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", help="CONFIG with model and corpus")
    parser.add_argument("--queries", help="queries file; without it every 25th example is a query")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    config = load_config(arguments.config, [])
    loaded = load_model(config.model, config.storage)
    shards = list_shards(config.corpus, config.storage).shards
    rows = [row for shard in shards for row in read_examples(shard, config, loaded) if row.scored]
    queries: Sequence[Example] = rows[::_EVERY]
    if arguments.queries:
        queries = [
            query_example(query, loaded.tokenizer, loaded.vocab_size, config.corpus.longest)
            for query in read_queries(arguments.queries, config.storage)
        ]
    else:
        rows = [row for number, row in enumerate(rows) if number % _EVERY]
    figures = []
    for preset in arguments.presets:
        raw = config.model_dump(exclude_unset=True)
        shared = {key: value for key, value in raw.items() if key in ("model", "corpus", "compute", "storage")}
        with tempfile.TemporaryDirectory() as folder:
            preset_config = parse_config({**shared, "index": f"{folder}/index", "preset": preset})
            figures.append(measure(preset, preset_config, loaded, rows, queries))
        print(figures[-1])
    if arguments.out:
        write_result(arguments.out, {"presets": [asdict(figure) for figure in figures]})


if __name__ == "__main__":
    main()
