"""The sections of the benchmarks page on layers and codes: which layers, how many bytes, and what was tried."""

from collections.abc import Iterator, Sequence
from typing import Any

from docs_generators.benchmark_results import interval, load, provenance, signed_interval, sourced
from docs_generators.markdown import code, table

_BEDS = {
    "python": "SmolLM2-135M (30 blocks), fine-tuned on 256 sequences of 64 tokens of Python's documentation",
    "wiki": "the same model, fine-tuned on as many sequences of WikiText-2",
    "small": "a GPT-2 of 2 blocks and width 96, trained on a thousand sequences of WikiText-2",
}
_CLUES = {
    "depth": "depth of the layer",
    "agreement": "agreement of its scores with the sum over all layers",
    "plants": "how far noisy copies stand out",
    "halves": "agreement of two halves of the tokens",
    "self": "similarity of the halves of one example",
}


def layers_sections() -> Iterator[str]:
    """Markdown blocks in the order of the page."""
    yield "### Layers and bytes {#layers}"
    yield f"""\
LDS of K-FAC scores and of codes of some layers, by bytes. Codes were made from dumps of activations and output
gradients of {_BEDS["python"]}. The rule is that of `code.bytes`; it was fixed on other testbeds before this one
was looked at. Rows that are called explored were looked at besides."""
    yield from _frontier("python")
    yield f"The same on {_BEDS['small']}:"
    yield from _frontier("small")
    yield """\
What this does not show: other models between 4 and 30 blocks, larger ones, and codes made by `lorif build`, whose
whitening comes from a sample."""
    yield from _clues()
    yield from _attempts()
    yield from _experts()


def _frontier(bed: str) -> Iterator[str]:
    name = f"frontier-{bed}.json"
    coverage = load(name)["coverage"]
    rows = [
        [
            f"{method}, every third block" if coverage.get(method) == "every third block" else method,
            "none" if row["bytes"] is None else f"{row['bytes']:,}",
            interval(row["lds"]),
            _difference(row["minus_old"]),
            _difference(row["minus_kfac"]),
        ]
        for method, row in load(name)["methods"].items()
    ]
    header = ["Method", "Bytes", "LDS", "Minus the default of version 1", "Minus K-FAC, all layers"]
    yield sourced(table(header, rows), name)
    yield provenance(
        name,
        "python -m benchmarks.quality.pairs TESTBED DUMP",
        "python -m benchmarks.quality.layer_scores DUMP",
        "python -m benchmarks.quality.baselines DUMP",
        f"python -m benchmarks.quality.frontier TESTBED DUMP benchmarks/results/{name}",
    )


def _clues() -> Iterator[str]:
    yield "### Clues to good layers {#clues}"
    yield f"""\
What tells good layers without training again: the rank correlation, over layers, of a clue with the LDS of each
layer alone. The testbeds are {_BEDS["wiki"]} (every third block), and {_BEDS["small"]}. Only depth orders the
down-projections of a deep model, so the rule uses depth."""
    for bed in ("wiki", "small"):
        name = f"layers-{bed}.json"
        groups: dict[str, dict[str, float]] = load(name)["clues"]
        rows = [
            [label, *(_correlation(clues.get(clue)) for clues in groups.values())]
            for clue, label in _CLUES.items()
        ]
        yield sourced(table(["Clue", *(f"{bed}: {group}" for group in groups)], rows), name)
        yield provenance(name, f"python -m benchmarks.quality.layers TESTBED DUMP benchmarks/results/{name}")


def _attempts() -> Iterator[str]:
    yield "### Other codes and inverses {#attempts}"
    yield """\
Attempts to get more out of a byte, each as a difference to the plain code at equal bytes, and other inverses than
K-FAC's that are applied to the query alone. `benchmarks.quality.moonshots` describes the codes and
`benchmarks.quality.inverses` the inverses. No code is better on both testbeds beyond its interval."""
    for bed in ("python", "small"):
        name = f"attempts-{bed}.json"
        result = load(name)
        codes = [
            [code(name_of_code), f"{row['bytes']:,}", interval(row["lds"]), _difference(row["minus_plain"])]
            for name_of_code, row in result["codes"].items()
        ]
        yield sourced(table([f"Code, {bed}", "Bytes", "LDS", "Minus the plain code"], codes), name)
        inverses = [
            [layers, code(inverse), interval(row["lds"]), _difference(row["minus_kfac"])]
            for layers, rows in result["inverses"].items()
            for inverse, row in rows.items()
        ]
        yield sourced(table([f"Layers, {bed}", "Inverse", "LDS", "Minus K-FAC"], inverses), name)
        yield provenance(name, f"python -m benchmarks.quality.attempts TESTBED DUMP benchmarks/results/{name}")


def _experts() -> Iterator[str]:
    name = "experts.json"
    result = load(name)
    model = result["model"]
    yield "### What to store of fused experts {#experts}"
    yield f"""\
LDS, and rank correlation with exact scores, of sketches of the gradients of experts. The model is an OLMoE of
{model["blocks"]} blocks and width {model["width"]} with {model["experts"]} experts of {model["neurons"]} neurons,
of which each token uses {model["per token"]}. Each row names the candidate, the size of the folded neurons, and
what was made of it. The product stores neuron signs. Values are means over draws of signs, of codes of one draw.
What this does not show: larger models, and more experts."""
    rows = [
        [method, *(f"{row[column]:.3f}" for column in ("lds", "with exact", "with K-FAC", "with K-FAC by expert"))]
        for method, row in result["methods"].items()
    ]
    yield sourced(table(["Scores", "LDS", "Exact", "K-FAC", "K-FAC by expert"], rows), name)
    key = "neuron signs, cut of about 2048 bits a matrix"
    bits = [[size, str(row["rank"]), f"{row['lds']:.3f}"] for size, row in result[key].items()]
    yield sourced(table(["Folded neurons, at equal bytes", "Rank", "LDS"], bits), name)
    yield provenance(name, f"python -m benchmarks.quality.experts FOLDER benchmarks/results/{name}")


def _difference(values: Sequence[float] | None) -> str:
    return "" if values is None else signed_interval(values)


def _correlation(value: Any) -> str:
    return "" if value is None else f"{value:+.2f}"
