"""The section of the benchmarks page on the demo: trainings without the passages that methods name."""

from collections.abc import Iterator

from docs_generators.benchmark_results import load, provenance, signed_interval, sourced
from docs_generators.markdown import table

_NAME = "demo.json"


def demo_sections() -> Iterator[str]:
    """Markdown blocks in the order of the page."""
    result = load(_NAME)
    yield "### The demo {#demo}"
    yield f"""\
`lorif demo` trains its model again without the passages that a method names for each of the answers that the
model gave by itself, and once with another seed and all passages. The rise in their loss, in nats a token, with
95 % bootstrap intervals over the answers, and how many of the {result["answers"]} answers the model still
gives:"""
    rows = [
        [
            removal["method"],
            str(removal["passages"]),
            signed_interval([removal[key] for key in ("mean", "low", "high")], 2),
            str(sum(removal["given"])),
        ]
        for removal in result["removals"]
    ]
    titles = ["Left out, for each answer", "Passages in all", "Rise in loss", "Still given"]
    yield sourced(table(titles, rows), _NAME)
    yield provenance(_NAME, f"python -m benchmarks.demo --out benchmarks/results/{_NAME}")
    yield """\
What this does not show: the answers are from notes that were written so that words cannot tell those that give an
answer from those that say the opposite. Where an answer repeats a passage with words of its own, BM25 finds that
passage as well. 13 is the number of notes that say an answer. It was chosen after a try with 10, where the other
three still taught the answer, and no method raised its loss by more than .1 nats a token."""
