"""The HTML report: one self-contained page with the most influential examples of each query and the costs."""

import math
from dataclasses import dataclass
from typing import Any

from lorif_core.errors import LorifError
from lorif_core.report.answer_sections import QuerySection
from lorif_core.report.changes import Change
from lorif_core.report.counterfactual import Counterfactual
from lorif_core.report.spectrum import LayerSection
from lorif_core.report.templating import assets, csp_hash, render_template
from lorif_core.spec import Coverage

_STYLES = ("base.css", "answer.css")
_SCRIPTS = ("page.js", "find.js", "keys.js", "shading.js")
_REPORT_STYLES = (*_STYLES, "report.css")
_EXPLORER_STYLES = (*_STYLES, "explorer.css")
_EXPLORER_SCRIPTS = (
    *_SCRIPTS, "conversation.js", "question.js", "chips.js", "ask.js", "history.js", "start.js", "exports.js",
    "flags.js", "panel.js", "pairs.js", "part.js", "generate.js", "explorer.js",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """Measured size of the index, and the size of uncompressed projected gradients in float16 (LoGRA)."""

    bytes_per_example: float
    dense_bytes_per_example: float
    rows: int
    total_bytes: int

    @property
    def dense_ratio(self) -> float | None:
        """Size of dense storage over that of the index; None for an empty index."""
        return self.dense_bytes_per_example / self.bytes_per_example if self.bytes_per_example else None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the page shows.

    Attributes:
        timings: (stage, seconds).
        skipped: (example id, reason).
        relative: scores are divided by the query's influence on itself; True for a generation with several
            checkpoints.
        change: what changed since the previous generation, for the same queries in the same order.
        omitted: a sentence about results that the page leaves out.
        counterfactual: trainings without the passages of several methods.
    """

    title: str
    generation: int
    checkpoint: str
    spec: str
    created_at: str
    curvature: str
    queries: tuple[QuerySection, ...]
    layers: tuple[LayerSection, ...]
    coverage: Coverage
    storage: Storage
    timings: tuple[tuple[str, float], ...]
    skipped: tuple[tuple[str, str], ...]
    relative: bool = False
    change: Change | None = None
    omitted: str | None = None
    counterfactual: Counterfactual | None = None


@dataclass(frozen=True, slots=True)
class Explorer:
    """Facts about the served index that the live page shows.

    Attributes:
        columns: the columns that a filter may use, (name, whether it holds numbers).
        top_k_max: the largest number of results that a request may ask for.
        needs_token: requests must carry the server's token.
        two_stage: searches may miss rows and cannot normalise scores.
        has_chat: the index has conversations, so a question can be one.
    """

    title: str
    generation: int
    rows: int
    checkpoint: str
    created_at: str
    columns: tuple[tuple[str, bool], ...]
    top_k_max: int
    needs_token: bool
    two_stage: bool
    has_chat: bool


def render(report: Report) -> str:
    """Render the report as one HTML document. It loads nothing from elsewhere, and all text in it is escaped.

    Raises:
        LorifError: a score or a loss is not finite.
    """
    for query in report.queries:
        _check_finite(query)
    return render_template("report.html.j2", report=report, title=report.title, **_inlined())


def render_answer_page(section: QuerySection, relative: bool) -> str:
    """Render one answered query as an HTML document, as `render` does for many; see `render_answer`."""
    _check_finite(section)
    return render_template("answer_page.html.j2", query=section, relative=relative, title="Answer", **_inlined())


def _inlined() -> dict[str, Any]:
    """Style sheet and script of a document, and the policy that allows nothing else."""
    style, script = assets(*_REPORT_STYLES), assets(*_SCRIPTS)
    policy = (
        f"default-src 'none'; style-src {csp_hash(style)}; script-src {csp_hash(script)}; base-uri 'none'; "
        f"form-action 'none'"
    )
    return {"style": style, "script": script, "policy": policy, "nonce": None}


def render_answer(section: QuerySection, relative: bool) -> str:
    """Render one answered query as an HTML fragment for the explorer's page, as it appears in a report.

    Args:
        section: the answered query.
        relative: scores are divided by the query's influence on itself, as in `Report`.

    Raises:
        LorifError: a score or the loss is not finite.
    """
    _check_finite(section)
    return render_template("fragment.html.j2", query=section, relative=relative)


def render_explorer(explorer: Explorer, nonce: str) -> str:
    """Render the explorer's page. Its style sheet and script carry the nonce of the server's content policy.

    The page has the question in the fragment of its address, which no browser sends to a server.
    """
    return render_template(
        "explorer.html.j2", explorer=explorer, title=explorer.title, style=assets(*_EXPLORER_STYLES),
        script=assets(*_EXPLORER_SCRIPTS), nonce=nonce,
    )  # fmt: skip


def _check_finite(query: QuerySection) -> None:
    contributions = [token.contribution for token in query.tokens or ()]
    contributions.extend(layer.share for layer in query.layers)
    for hit in query.hits:
        contributions.extend(hit.tokens or ())
        contributions.extend(token.share for token in hit.training_tokens or ())
        contributions.extend(layer.share for layer in hit.layers)
        if not math.isfinite(hit.score):
            raise LorifError(f"query {query.query_id!r}: the score of {hit.example_id!r} is {hit.score}")
    if not math.isfinite(query.loss):
        raise LorifError(f"query {query.query_id!r}: the loss is {query.loss}")
    if not all(map(math.isfinite, contributions)):
        raise LorifError(f"query {query.query_id!r}: the part of a token or a layer in a score is not finite")
