"""The commands `lorif query`, `select`, `serve` and `attribute`: questions to an index."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from flows.commands.result import Result, listed
from flows.commands.shared import log_failures_once, read_config
from flows.tables import ranking_text, totals_text
from lorif_core.errors import UserError
from tasks.environment import fast_imports

_PRINTED_KEYS = ("queries", "scores", "generation", "rows", "skipped", "timings")


def run_attribute(
    config: str | None,
    overrides: Sequence[str],
    queries: str,
    out: str,
    top_k: int,
    where: str | None,
    normalise: str,
) -> Result:
    """`lorif attribute`."""
    settings = read_config(config, overrides)
    with fast_imports():
        from tasks.attribute import check_attribution

    check_attribution(settings, queries, out, top_k, where, normalise)
    from flows.attribute import attribute

    log_failures_once()
    summary = attribute(settings, queries, out, top_k, where, normalise)
    data = {"out": out, **{key: summary[key] for key in _PRINTED_KEYS}}
    return listed(data, f"read the answers in {out.rstrip('/')}/report.html")


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
    if explain and normalise != "none":
        raise UserError("--explain shows the parts of plain scores; leave out --normalise")
    if generate and (completion is not None or span is not None):
        raise UserError("--generate lets the model write the completion; leave out --completion and --span")
    with fast_imports():
        from flows.questions import answer, generated_query, open_for_questions
    from rich.console import Group

    from lorif_core.search.queries import as_query

    asked = {"text": text} if completion is None else {"prompt": text, "completion": completion}
    query = as_query({**asked, "span": span}, 0)
    opened, checkpoint = open_for_questions(index, overrides, model)
    options = opened.options(where, normalise)
    if generate:
        query = generated_query(opened.encoder(checkpoint).loaded, query, max_new_tokens)
    spoken, ranking = answer(opened, checkpoint, query, top_k, options, explain=explain)
    likelihood = spoken.likelihood
    assert likelihood is not None
    data: dict[str, Any] = {
        "generation": opened.generation.generation,
        **({"completion": query.completion} if generate else {}),
        "likelihood": asdict(likelihood),
        **ranking,
    }
    texts: list[Any] = [f"the model adds  {query.completion!r}"] if generate else []
    texts += [f"{likelihood.words} ({likelihood.nats_per_token:.2f} nats a token)", ranking_text(ranking)]
    if totals is not None:
        sums = opened.totals([query], totals, checkpoint, where=where, normalise=options.normalise)
        data["totals"] = sums.drop_columns(["query_id"]).to_pylist()
        texts.append(totals_text(data["totals"], totals))
    return Result(data, Group(*texts))


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
    if self_influence and normalise != "none":
        raise UserError("--self-influence cannot be normalised; leave out --normalise")
    with fast_imports():
        from flows.questions import open_for_questions
    from lorif_core.search.queries import read_queries
    from lorif_core.search.selection import check_new_file, write_selection

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
