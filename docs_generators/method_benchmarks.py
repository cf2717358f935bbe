"""The sections of the benchmarks page that compare methods: LDS, tail-patch and the recall of planted sources."""

from collections.abc import Iterator
from typing import Any

from docs_generators.benchmark_results import (
    interval,
    load,
    method_name,
    provenance,
    signed_interval,
    sourced,
)
from docs_generators.markdown import code, table
from lorif_core.presets import DEFAULT_PRESET

_WIKITEXT = "{examples} examples of WikiText-2"
_OWN_MODEL = "python -m benchmarks.quality.testbed TESTBED --size {bed}"
_REAL = "python -m benchmarks.quality.pretrained TESTBED --model CHECKPOINT --text {bed}"
_BUDGETS = f"{_REAL.replace('{bed}', 'python')} --methods budgets"
_ESTIMATE = ("value", "low", "high")
_RECALLS = {"recall@1": "Recall at 1", "recall@10": "Recall at 10", "mrr": "Reciprocal rank"}


def method_sections() -> Iterator[str]:
    """Markdown blocks in the order of the page."""
    yield "### LDS of presets and baselines {#lds}"
    yield """\
The linear datamodeling score (LDS) asks whether scores predict what training does. Models are trained on
random halves of the corpus. For each query, the scores of the examples in a half are summed; LDS is the rank
correlation, over the halves, of these sums with the loss that the trained models have. 1 is perfect, 0 is
chance. Bytes are those of an example's code. Intervals are 95 % bootstrap intervals over subsets and queries.
The rule for layers and the presets were chosen on the small testbed and on one of WikiText-2. The large one had
no part in it; on that of the pretrained model, the largest number of layers, 15, and "shorter sides" were chosen
after its results were seen. "Version 1" are the presets of the first release."""
    yield "![LDS against bytes for each example, on the large testbed](assets/lds.svg)"
    yield from _testbed("large", f"A GPT-2 of 4 layers of width 256, trained on {_WIKITEXT}", _OWN_MODEL)
    yield from _testbed("small", f"A GPT-2 of 2 layers of width 96, trained on {_WIKITEXT}", _OWN_MODEL)
    yield from _testbed(
        "python", "SmolLM2-135M, fine-tuned on {examples} examples of Python's documentation", _REAL
    )
    yield from _testbed(
        "budgets",
        "The model and subsets of `python` again, with `code.bytes` and baselines: SmolLM2-135M, fine-tuned on "
        "{examples} examples",
        _BUDGETS,
    )
    yield """\
"LoGRA f58" stores 10 x 10 numbers or so of each of the 210 layers in float16, with its exact curvature. "Gradient
dot, f8" estimates the dot product of whole gradients, without curvature."""
    yield from _tail_patch()
    yield from _recall()
    yield """\
What this does not show: larger models, other texts, pretraining from scratch, or corpora with
more examples than a projected gradient has entries, where LoGRA's exact curvature gains. The intervals do not
cover the seeds of the model or of the projections. To measure your own model and data, see [Measure
quality](how-to/measure-quality.md)."""


def _testbed(name_of_bed: str, model: str, command: str) -> Iterator[str]:
    name = f"quality-{name_of_bed}/lds.json"
    result = load(name)
    yield f"#### The testbed {code(name_of_bed)} {{#lds-{name_of_bed}}}"
    runs = "1 training run" if result["seeds"] == 1 else f"{result['seeds']} training runs"
    trained = model.format(examples=f"{result['examples']:,}")
    yield f"""\
{trained}; {result["queries"]} queries, {result["subsets"]} subsets, {runs} on each. Presets are in code type;
`{DEFAULT_PRESET}` is the default."""
    yield sourced(
        table(["Method", "Bytes", "LDS"], [_method(method) for method in _by_size(result["methods"])]), name
    )
    yield "Paired differences of LDS:"
    yield sourced(_differences(result["differences"], "Difference of LDS"), name)
    yield provenance(
        name,
        command.format(bed=name_of_bed),
        "lorif evaluate lds -c TESTBED/evaluation.yaml --out OUT",
        f"cp OUT/lds.json OUT/lds.csv OUT/lds.svg benchmarks/results/quality-{name_of_bed}/",
        f"python -m benchmarks.run_record benchmarks/results/{name}",
    )


def _tail_patch() -> Iterator[str]:
    """The gain of one training step on the proponents, on the testbed `budgets`."""
    name = "quality-budgets/tail-patch.json"
    result = load(name)
    yield "#### Tail-patch {#tail-patch}"
    yield f"""\
How much one step of plain gradient descent on the {result["top_k"]} strongest proponents of a query raises its
log-probability, on the testbed `budgets`; {result["queries"]} queries. Such a step moves along the gradient
itself, so it favours methods near its plain dot product, whatever training does: in LDS the gradient dot product
is last."""
    rows = [
        [
            method["method"],
            "none" if method["bytes_per_example"] is None else f"{method['bytes_per_example']:,.0f}",
            interval([method["value"], method["low"], method["high"]]),
        ]
        for method in result["methods"]
        if method["measure"] == "log-probability"
    ]
    yield sourced(table(["Method", "Bytes", "Gain in nats"], rows), name)
    yield provenance(
        name,
        _BUDGETS,
        "lorif evaluate tail-patch -c TESTBED/evaluation.yaml --out OUT",
        "cp OUT/tail-patch.json benchmarks/results/quality-budgets/",
        f"python -m benchmarks.run_record benchmarks/results/{name}",
    )


def _recall() -> Iterator[str]:
    """How often planted near-duplicates of the queries are found, on the testbed `budgets`."""
    name = "quality-budgets/recall.json"
    result = load(name)
    figures = {(row["method"], row["kind"], row["measure"]): row for row in result["methods"]}
    sizes = {row["method"]: row["bytes_per_example"] for row in result["methods"]}
    yield "#### Recall of planted sources {#recall}"
    yield f"""\
On the testbed `budgets`, {result["sources"]} near-duplicates of the {result["queries"]} queries are planted in
the corpus, and the model is trained on all {result["examples"]} examples. A copy is
exact; in the others the named share of the tokens is dropped, swapped with a neighbour or replaced. Recall is
the share of sources that a method ranks first, or among the first ten; the reciprocal rank is 1 if the source is
first."""
    rows = [
        [
            method,
            "none" if size is None else f"{size:,.0f}",
            kind,
            *(interval([figures[method, kind, measure][key] for key in _ESTIMATE]) for measure in _RECALLS),
        ]
        for kind in dict.fromkeys(row["kind"] for row in result["methods"])
        for method, size in sizes.items()
    ]
    yield sourced(table(["Method", "Bytes", "Source", *_RECALLS.values()], rows), name)
    hardest = result["methods"][-1]["kind"]
    yield f"Paired differences of the reciprocal rank, for sources of the last kind ({hardest}):"
    differences = [pair for pair in result["differences"] if (pair["kind"], pair["measure"]) == (hardest, "mrr")]
    yield sourced(_differences(differences, "Difference"), name)
    yield """\
Near-duplicates share most words with their query, so BM25, a search for words, finds them best. Such sources
show that a method finds what it must find; they do not show what influence adds to a search for words. The edited
sources that `64 KiB` misses among the first ten are the strongest opponents of their queries: they teach other
tokens in the same places."""
    yield provenance(
        name,
        _BUDGETS,
        "lorif evaluate recall -c TESTBED/evaluation.yaml --out OUT",
        "cp OUT/recall.json benchmarks/results/quality-budgets/",
        f"python -m benchmarks.run_record benchmarks/results/{name}",
    )


def _differences(pairs: list[dict[str, Any]], header: str) -> str:
    rows = [
        [
            f"{method_name(pair['first'])} minus {method_name(pair['second'])}",
            signed_interval([pair["difference"], pair["low"], pair["high"]]),
        ]
        for pair in pairs
    ]
    return table(["Pair", header], rows)


def _by_size(methods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Methods by bytes, those without any last."""
    return sorted(methods, key=lambda method: (method["bytes_per_example"] or float("inf"), -method["lds"]))


def _method(method: dict[str, Any]) -> list[str]:
    size = method["bytes_per_example"]
    return [
        method_name(method["method"]),
        "none" if size is None else f"{size:,.0f}",
        interval([method["lds"], method["low"], method["high"]]),
    ]
