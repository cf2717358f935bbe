"""The section of the benchmarks page on the words that say how likely a model finds an answer."""

from collections.abc import Iterator

from docs_generators.benchmark_results import decimals, load, provenance, sourced
from docs_generators.markdown import table
from lorif_core.search.likelihood import words_of

_RESULT = "likelihood.json"
_KINDS = {
    "greedy": "the model's first choices",
    "sampled": "a random sample of the model",
    "human": "how the passage goes on",
    "human, of another passage": "how another passage goes on",
    "human, tokens in a random order": "its tokens in a random order",
}
_MEASURES = ("nats", "own_nats", "above")


def likelihood_sections() -> Iterator[str]:
    """Markdown blocks in the order of the page."""
    result = load(_RESULT)
    yield "### How likely an answer is, in words {#likelihood}"
    yield f"""\
{result["beginnings"]} beginnings of {result["words"]} words of {result["text"]}, each continued in five ways of
{result["tokens"]} tokens, under {result["model"]}. The words for an answer follow from how far its losses lie
above those of the model's first choices in the same places. Cells have the mean, and in brackets the 10th and
the 90th percentile:"""
    rows = []
    for kind, name in _KINDS.items():
        row = result["kinds"][kind]
        cells = [
            f"{decimals(row[measure]['mean'], 2)} ({decimals(row[measure]['p10'], 2)} to "
            f"{decimals(row[measure]['p90'], 2)})"
            for measure in _MEASURES
        ]
        words = (f"{count}: {words_of(float(limit))}" for limit, count in row["up_to"].items())
        rows.append([name, *cells, "; ".join(words)])
    header = ["Continuation", "Nats a token", "Of the first choices", "Above them", "In words"]
    yield sourced(table(header, rows), _RESULT)
    yield """\
What this does not show: other models, other languages, and texts that the model was trained on."""
    yield provenance(_RESULT, f"python -m benchmarks.likelihood CHECKPOINT --out benchmarks/results/{_RESULT}")
