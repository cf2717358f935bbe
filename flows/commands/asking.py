"""The commands `lorif query`, `select`, `serve` and `attribute`: questions to an index."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from flows.commands.result import Result, listed
from flows.commands.shared import log_failures_once, read_config
from flows.tables import totals_text
from lorif_core.errors import UserError
from tasks.environment import fast_imports

_EXCERPT = 160
_CONTRIBUTIONS = 5
_PRINTED_KEYS = ("queries", "scores", "generation", "rows", "skipped", "timings")


def run_attribute(
    config: str, overrides: Sequence[str], queries: str, out: str, top_k: int, where: str | None, normalise: str
) -> Result:
    """`lorif attribute`."""
    settings = read_config(config, overrides)
    from tasks.attribute import check_attribution

    check_attribution(settings, queries, out, top_k, where, normalise)
    from flows.attribute import attribute

    log_failures_once()
    summary = attribute(settings, queries, out, top_k, where, normalise)
    return listed({"out": out, **{key: summary[key] for key in _PRINTED_KEYS}})


def run_query(
    index: str,
    overrides: Sequence[str],
    text: str,
    completion: str | None,
    span: dict[str, int] | None,
    generate: bool,
    max_new_tokens: int,
    top_k: int,
    model: str | None,
    where: str | None,
    normalise: str,
    totals: str | None,
    explain: bool,
) -> Result:
    """`lorif query`: runs on this machine, without Ray and Prefect."""
    with fast_imports():
        from flows.questions import answer, generated_query, open_for_questions
    from lorif_core.search.likelihood import spoken_answer
    from lorif_core.search.queries import as_query

    if explain and normalise != "none":
        raise UserError("--explain shows the parts of plain scores; leave out --normalise")
    if generate and (completion is not None or span is not None):
        raise UserError("--generate lets the model write the completion; leave out --completion and --span")
    asked = {"text": text} if completion is None else {"prompt": text, "completion": completion}
    query = as_query({**asked, "span": span}, 0)
    opened, checkpoint = open_for_questions(index, overrides, model)
    options = opened.options(where, normalise)
    encoder = opened.encoder(checkpoint)
    if generate:
        query = generated_query(encoder.loaded, query, max_new_tokens)
    ranking = answer(opened, checkpoint, query, top_k, options, explain=explain)
    likelihood = spoken_answer(encoder, query).likelihood
    assert likelihood is not None
    data: dict[str, Any] = {
        "generation": opened.generation.generation,
        **({"completion": query.completion} if generate else {}),
        "likelihood": asdict(likelihood),
        **ranking,
    }
    texts = [f"the model adds  {query.completion!r}"] if generate else []
    texts += [f"{likelihood.words} ({likelihood.nats_per_token:.2f} nats a token)", _ranking_text(ranking)]
    if totals is not None:
        sums = opened.totals([query], totals, checkpoint, where=where, normalise=options.normalise)
        data["totals"] = sums.drop_columns(["query_id"]).to_pylist()
        texts.append(totals_text(data["totals"], totals))
    return Result(data, "\n".join(texts))


def run_select(
    index: str,
    overrides: Sequence[str],
    queries: str | None,
    self_influence: bool,
    fraction: float,
    bottom: bool,
    out: str,
    model: str | None,
    where: str | None,
    normalise: str,
) -> Result:
    """`lorif select`: runs on this machine, without Ray and Prefect."""
    with fast_imports():
        from flows.questions import open_for_questions
    from lorif_core.search.queries import read_queries
    from lorif_core.search.selection import check_new_file, write_selection

    if self_influence and normalise != "none":
        raise UserError("--self-influence cannot be normalised; leave out --normalise")
    opened, checkpoint = open_for_questions(index, overrides, model)
    storage = opened.store.storage
    check_new_file(out, storage)
    targets = None if queries is None else read_queries(queries, storage)
    options = opened.options(where, normalise)
    batches = opened.select(targets, fraction, checkpoint, bottom=bottom, where=where, normalise=options.normalise)
    rows, lowest, highest = write_selection(batches, out, storage)
    data = {
        "out": out, "generation": opened.generation.generation, "rows": rows,
        "queries": None if targets is None else len(targets), "lowest": lowest, "highest": highest,
    }  # fmt: skip
    return listed(data)


def run_serve(
    index: str,
    overrides: Sequence[str],
    host: str,
    port: int,
    model: str | None,
    memory_gb: float | None,
    two_stage: bool,
) -> Iterator[Result]:
    """`lorif serve`: yields the address when the server accepts connections, and finally the number of answers."""
    with fast_imports():
        from flows.serve.run import prepare
    serving = prepare(index, overrides, host, port, model, memory_gb, two_stage)
    serving.listen()
    data = {"address": serving.address, "generation": serving.live_index.current.index.generation.generation}
    yield Result(data, serving.address)
    serving.run()
    data = {
        **data,
        "generation": serving.live_index.current.index.generation.generation,
        "answered": serving.queue.answered,
    }
    yield Result(data, f"answered {serving.queue.answered} questions")


def _ranking_text(answer: dict[str, list[dict[str, Any]]]) -> str:
    from lorif_core.corpus.turns import Turn, spoken_line  # imports numpy

    lines = []
    for side, hits in answer.items():
        lines.append(side)
        for hit in hits:
            turns = [Turn(**turn) for turn in hit.get("turns", ())]
            excerpt = spoken_line(hit["text"] or "", turns)[:_EXCERPT]
            lines.append(f"  {hit['rank']:>3}  {hit['score']:+.4g}  {hit['example_id']}  {excerpt}")
            if "tokens" in hit:
                lines.append(f"       tokens  {_strongest(hit['tokens'])}")
                lines.append(f"       layers  {_strongest(hit['layers'].items())}")
            if hit.get("training_tokens"):
                lines.append(f"       passage {_strongest(hit['training_tokens'])}")
    return "\n".join(lines)


def _strongest(contributions: Iterable[tuple[str, float]]) -> str:
    ordered = sorted(contributions, key=lambda contribution: -abs(contribution[1]))[:_CONTRIBUTIONS]
    return ", ".join(f"{name!r} {value:+.3g}" for name, value in ordered)
