"""Invariant: every kind of query gives the result of a brute-force computation on decoded codes in float64."""

import json
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import lorif_core as lc
from lorif_core.config import Config
from lorif_core.errors import UserError
from lorif_core.search.index import Index
from lorif_core.search.queries import Query, as_query
from tests.integration.kinds import check_two_stage
from tests.integration.lorif import run

A, B = "the cat sees it", {"prompt": "the dog ", "completion": "runs and runs"}
QUERIES: list[object] = [A, B]
ROWS = ["s3", "s900", "s12", "s3"]

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")


class Dense:
    """A decoded index of one part: G (N, D) and H^-1 (D, D) of each layer, float64."""

    def __init__(self, index: Index) -> None:
        self._index, (part,) = index, index.parts
        blocks = list(part.blocks())
        self.ids = [name for block in blocks for name in block.example_ids]
        codes, scales = (torch.cat([getattr(block, name) for block in blocks]) for name in ("codes", "scales"))
        self.layers = [layer.name for layer in part.spec.layers]
        self.G = [part.layout.decode(codes, scales, layer).double() for layer in range(len(self.layers))]
        self.inverse = []
        for _, fitted in index.store.curvatures.layers(index.generation, part.part):
            basis = fitted.basis.double()
            inside = basis @ torch.diag(1 / (fitted.sigma2 + fitted.damping)) @ basis.T
            self.inverse.append(inside + (torch.eye(len(basis)) - basis @ basis.T) / fitted.outside)

    def by_layer(self, query: object) -> np.ndarray:
        """(L, N) contributions of the layers to a single query's scores."""
        parsed = query if isinstance(query, Query) else as_query(query, 0)  # type: ignore[arg-type]
        gradients = self._index.encoder().gradients([parsed]).layers
        parts = zip(gradients, self.inverse, self.G, strict=True)
        return torch.stack([(Q.double() @ H @ G.T)[0] for Q, H, G in parts]).numpy()

    def scores(self, query: object) -> np.ndarray:
        return self.by_layer(query).sum(axis=0)

    @cached_property
    def own(self) -> np.ndarray:
        """(N,) s(x, x)."""
        parts = zip(self.G, self.inverse, strict=True)
        return sum(((G @ H) * G).sum(dim=1) for G, H in parts).numpy()  # type: ignore[union-attr]

    def own_query(self, query: object) -> float:
        gradients = self._index.encoder().gradients([as_query(query, 0)]).layers  # type: ignore[arg-type]
        parts = zip(gradients, self.inverse, strict=True)
        return float(sum((Q[0].double() @ H @ Q[0].double()) for Q, H in parts))


@pytest.fixture(scope="module")
def index(built: Config) -> Index:
    return lc.open_index(built.index)


@pytest.fixture(scope="module")
def dense(index: Index) -> Dense:
    return Dense(index)


def assert_near(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """Equal up to a fraction of the largest number."""
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_a_group_is_the_mean_and_a_contrast_the_difference(index: Index, dense: Dense) -> None:
    kinds: list[object] = [{"group": [A, B, A]}, {"contrast": [A, B]}, A]
    ids, kind_scores = index.scores(kinds)  # type: ignore[arg-type]
    a, b = dense.scores(A), dense.scores(B)
    assert ids == dense.ids
    for scores, expected in zip(kind_scores, [(2 * a + b) / 3, a - b, a], strict=True):
        assert_near(scores, expected)
    (single,) = index.encode([A])
    (mixed,) = index.encode(kinds)  # type: ignore[arg-type]
    assert mixed.losses[2] == single.losses[0]
    assert mixed.losses[1] == pytest.approx(single.losses[0] - index.encode([B])[0].losses[0], rel=1e-5)


@pytest.mark.parametrize("query", QUERIES)
def test_tokens_add_up_to_the_score(index: Index, dense: Dense, query: object) -> None:
    """A token contributes as a query with all other labels masked; unscored tokens contribute nothing."""
    tokens, contributions = index.token_scores(query, ROWS)  # type: ignore[arg-type]
    example = index.encoder().example(as_query(query, 0))  # type: ignore[arg-type]
    columns = [dense.ids.index(name) for name in ROWS]
    assert "".join(tokens) == example.text and contributions.shape == (len(tokens), len(ROWS))
    assert_near(contributions.sum(axis=0), dense.scores(query)[columns])
    unscored = [t for t, label in enumerate(example.labels) if t == 0 or label == -100]
    assert not contributions[unscored].any()
    last = len(tokens) - 1
    labels = tuple(-100 if t != last else int(example.labels[t]) for t in range(len(tokens)))
    last_only = Query("t", tokens=tuple(example.input_ids.tolist()), labels=labels)
    assert_near(contributions[last], dense.scores(last_only)[columns])


def test_layers_add_up_to_the_score(index: Index, dense: Dense) -> None:
    columns = [dense.ids.index(name) for name in ROWS]
    expected = dense.by_layer(B)[:, columns]
    names, contributions = index.layer_scores(B, ROWS)
    assert names == dense.layers
    assert_near(contributions, expected)
    groups, grouped = index.layer_scores(B, ROWS, groups=r"h\.(\d+)\.")
    assert groups == ["0", "1"]
    blocks = np.split(expected, 2)  # the layers of the first and of the second block of the model
    assert_near(grouped, np.stack([block.sum(axis=0) for block in blocks]))
    groups, grouped = index.layer_scores({"contrast": [A, B]}, ROWS, groups="attn")
    assert groups == ["attn", "other"]
    assert_near(grouped.sum(axis=0), (dense.scores(A) - dense.scores(B))[columns])


def test_invalid_arguments_are_refused(index: Index) -> None:
    for call, reason in {
        lambda: index.token_scores({"group": [A]}, ROWS): "query '0' consists of several queries; here it must be",
        lambda: index.token_scores(A, ["s3", "nobody"]): "generation 1 has no example 'nobody'",
        lambda: index.layer_scores(A, ["nobody"]): "has no example 'nobody'",
        lambda: index.layer_scores(A, ROWS, groups="h.("): "is not a valid regular expression",
        lambda: index.scores(
            [A], where="colour = 1"
        ): "is not a valid condition on the columns of the index: .*colour",
        lambda: index.scores([A], where="row < 0"): "matches none of its rows",
        lambda: index.scores([A], normalise="max"): "it must be one of none, cosine, self",  # type: ignore[arg-type]
        lambda: index.totals([A], by="codes"): "no column 'codes' to sum scores by; it has example_id, shard",
        lambda: index.select([A], 0.0): "the fraction is 0; it must be above 0",
    }.items():
        with pytest.raises(UserError, match=reason):
            call()


def test_normalised_scores(index: Index, dense: Dense) -> None:
    ids, values = zip(*index.self_influence(), strict=True)
    assert [name for block in ids for name in block] == dense.ids
    assert_near(np.concatenate(values), dense.own)
    for normalise, divisor in {
        "none": 1.0,
        "self": np.sqrt(dense.own),
        "cosine": np.sqrt(dense.own_query(A) * dense.own),
    }.items():
        _, scores = index.scores([A], normalise=normalise)  # type: ignore[arg-type]
        assert_near(scores[0], dense.scores(A) / divisor)
    assert np.abs(scores).max() <= 1
    (top,) = index.top_k([A], 5, where="tokens > 20", normalise="cosine")
    counts = {row["example_id"]: row["tokens"] for row in rows_of(index, ["example_id", "tokens"])}
    matching = [row for row, name in enumerate(dense.ids) if counts[name] > 20]
    best = sorted(matching, key=lambda row: -scores[0][row])[:5]
    assert [hit.example_id for hit in top.proponents] == [dense.ids[row] for row in best]


def rows_of(index: Index, columns: list[str]) -> list[dict[str, object]]:
    batches = index.store.rows.metadata(index.generation.factors_version, columns)
    return [row for batch in batches for row in batch.to_pylist()]


def test_totals_by_a_column(index: Index, dense: Dense) -> None:
    rows = rows_of(index, ["example_id", "shard", "tokens"])
    for by, where in (("shard", None), ("tokens", "row >= 300")):
        expected: dict[tuple[str, object], list[float]] = defaultdict(list)
        for query, scores in (("0", dense.scores(A)), ("1", dense.scores(B))):
            by_id = dict(zip(dense.ids, scores, strict=True))
            for row in rows:
                if where is None or int(str(row["example_id"])[1:]) >= 300:
                    expected[query, row[by]].append(by_id[str(row["example_id"])])
        table = index.totals([A, B], by=by, where=where).to_pylist()
        assert {(row["query_id"], row[by]) for row in table} == set(expected) and len(table) == len(expected)
        for row in table:
            scores = np.array(expected[row["query_id"], row[by]])
            assert row["rows"] == len(scores)
            assert row["total"] == pytest.approx(scores.sum(), rel=1e-3, abs=1e-4 * np.abs(scores).sum())
            assert row["positive"] == pytest.approx(scores[scores > 0].sum(), rel=1e-4)
            assert row["negative"] == pytest.approx(scores[scores < 0].sum(), rel=1e-4)
            assert (row["proponents"], row["opponents"]) == ((scores > 0).sum(), (scores < 0).sum())
    totals = [row["total"] for row in table if row["query_id"] == "0"]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize("bottom", [False, True])
def test_selection_equals_that_of_a_full_sort(index: Index, dense: Dense, bottom: bool) -> None:
    mean = (dense.scores(A) + dense.scores(B)) / 2
    batches = list(index.select([A, B], 0.1, bottom=bottom))
    rows = [row for batch in batches for row in batch.to_pylist()]
    best = np.argsort(mean if bottom else -mean)[: round(0.1 * len(mean))]
    assert [row["example_id"] for row in rows] == [dense.ids[place] for place in sorted(best)]
    assert_near(np.array([row["score"] for row in rows]), mean[sorted(best)])
    uri = {row["example_id"]: (row["uri"], row["row"]) for row in rows_of(index, ["example_id", "uri", "row"])}
    assert all(uri[row["example_id"]] == (row["uri"], row["row"]) for row in rows)
    _, cosine = index.scores([A, B], normalise="cosine")
    (batch,) = index.select([A, B], 1e-9, normalise="cosine", bottom=bottom)
    place = (np.argmin if bottom else np.argmax)(cosine.mean(axis=0))
    assert batch.column("example_id").to_pylist() == [dense.ids[place]]


@pytest.fixture(scope="module")
def queries_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("queries") / "queries.jsonl"
    path.write_text(json.dumps({"id": "a", "text": A}) + "\n" + json.dumps({"contrast": [A, B]}) + "\n")
    return str(path)


def test_select_writes_a_whole_file_or_none(
    built: Config, dense: Dense, queries_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "best.parquet"
    command = ["select", built.index, "--queries", queries_file, "--fraction", "0.05", "--out", str(out)]
    code, output, _ = run(capsys, *command, "--where", "row >= 600", "--json")
    mean = dense.scores(A) - dense.scores(B) / 2
    matching = [place for place, name in enumerate(dense.ids) if int(name[1:]) >= 600]
    best = sorted(matching, key=lambda place: -mean[place])[: round(0.05 * len(matching))]
    table = pq.read_table(out)
    assert code == 0 and table.column("example_id").to_pylist() == [dense.ids[place] for place in sorted(best)]
    data = json.loads(output.splitlines()[-1])
    assert (data["rows"], data["queries"]) == (len(best), 2)
    assert_near(np.array([data["lowest"], data["highest"]]), mean[[best[-1], best[0]]])
    for arguments, reason in (
        (command, "exists already"),
        ([*command[:-1], str(tmp_path / "b"), "--where", "row <"], "is not a valid condition"),
        ([*command[:-1], str(tmp_path / "b"), "--fraction", "1.5"], "the fraction is 1.5"),
        (
            [*command[:2], "--self-influence", *command[4:-1], str(tmp_path / "b"), "--normalise", "self"],
            "cannot be normalised",
        ),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and reason in err and len(err.strip().splitlines()) == 1, err
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "best.parquet"]
    code, _, _ = run(
        capsys, *command[:2], "--self-influence", *command[4:-1], str(tmp_path / "own.parquet"), "--bottom"
    )
    own = pq.read_table(tmp_path / "own.parquet").column("example_id").to_pylist()
    assert code == 0 and own == [dense.ids[place] for place in sorted(np.argsort(dense.own)[: len(own)])]


def test_query_explains_and_adds_up(built: Config, dense: Dense, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["query", built.index, "--text", A, "--top-k", "2", "--totals", "shard", "--explain"]
    code, output, _ = run(capsys, *command, "--json")
    data = json.loads(output.splitlines()[-1])
    assert code == 0 and sum(row["rows"] for row in data["totals"]) == len(dense.ids)
    for hit in (*data["proponents"], *data["opponents"]):
        for parts in ([value for _, value in hit["tokens"]], list(hit["layers"].values())):
            assert_near(np.array(sum(parts)), np.array(hit["score"]), 1e-3)
    code, output, _ = run(capsys, *command)
    assert code == 0 and "totals by shard, 3 of 3" in output and len(re.findall("  tokens +'", output)) == 4
    code, _, err = run(capsys, *command, "--normalise", "self")
    assert code == 2 and "leave out --normalise" in err


def test_attribute_with_search_options(
    built: Config, index: Index, queries_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch on Ray gives the results of the library in this process."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(built.model_dump(exclude_unset=True)))
    command = [
        "attribute",
        "-c",
        str(config),
        "--queries",
        queries_file,
        "--top-k",
        "3",
        "--out",
        str(tmp_path / "out"),
    ]
    code, _, err = run(capsys, *command, "--where", "colour = 1")
    assert code == 2 and "not a valid condition" in err and not (tmp_path / "out").exists()
    code, _, _ = run(capsys, *command, "--where", "tokens < 40", "--normalise", "cosine")
    expected = index.top_k([A, {"contrast": [A, B]}], 3, where="tokens < 40", normalise="cosine")
    rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    actual = [(row["example_id"], row["score"]) for row in rows]
    hits = [(hit.example_id, hit.score) for top in expected for hit in (*top.proponents, *top.opponents)]
    details = index.store.rows.details(index.generation.factors_version, [name for name, _ in hits])
    assert code == 0, "rows of the same text tie, and rounding may choose another of them"
    assert [row["text"] for row in rows] == [details[name]["text"] for name, _ in hits]
    assert_near(np.array([score for _, score in actual]), np.array([score for _, score in hits]))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["where"], summary["normalise"]) == ("tokens < 40", "cosine")


def test_a_two_stage_search_with_all_candidates_equals_an_exact_search(index: Index) -> None:
    check_two_stage(index, QUERIES)
    (part,) = Index(index.store, index.generation).parts
    assert part.keep_resident(2**30, two_stage=True) >= part.two_stage().bytes and not part.is_resident
    assert part.two_stage().bytes_read(5) < 0.3 * part.part.rows * part.layout.bytes_per_example
    with pytest.raises(UserError, match=r"for a two-stage search take .* MiB, but only 0\.0 MiB"):
        Index(index.store, index.generation).parts[0].keep_resident(1000, two_stage=True)
    with pytest.raises(UserError, match="cannot rank normalised scores"):
        index.top_k([A], 5, normalise="self", two_stage=True)
