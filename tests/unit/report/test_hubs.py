"""Invariant: an example of a report states under how many other queries of the batch it is shown."""

from pathlib import Path

import pytest

from lorif_core.report import batch_outputs
from lorif_core.report.answer import source_totals
from lorif_core.report.answer_sections import QuerySection
from lorif_core.report.batch_outputs import write_answers
from lorif_core.report.block_answers import Attribution, from_parquet, to_parquet
from lorif_core.report.page import Report
from lorif_core.search.explanation import explain
from lorif_core.search.likelihood import spoken_answers
from lorif_core.search.queries import as_query
from lorif_core.search.top_k import Scored, TopK
from tests.small_index import build_small, save_model

SHOWN = {"q0": "abc", "q1": "abd", "q2": "ab", "q3": "e", "q4": "a"}


@pytest.mark.parametrize("shown", [2, 100])
def test_examples_count_the_other_queries_that_show_them(
    shown: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also queries that the page leaves out count, and groups of answers that are written apart."""
    monkeypatch.setattr(batch_outputs, "QUERIES_IN_REPORT", shown)
    monkeypatch.setattr(batch_outputs, "_HITS_PER_WRITE", 4)
    reports: list[Report] = []
    monkeypatch.setattr(batch_outputs, "render", lambda report: reports.append(report) or "")
    (tmp_path / "c.jsonl").write_text("".join(f'{{"id": "{name}", "text": "cat {name}"}}\n' for name in "abcde"))
    corpus = {"uri": str(tmp_path / "c.jsonl"), "id": "id", "max_length": 48}
    index = build_small(tmp_path / "index", save_model(tmp_path / "model"), corpus, preset="quality")
    answers = [
        Attribution(as_query({"id": name, "text": "a cat"}, 0), 1.0, TopK(3, [Scored(1.0, x) for x in ids]))
        for name, ids in SHOWN.items()
    ]
    write_answers(str(tmp_path / "out"), index.store, index.generation, answers, "Hubs")
    sections: tuple[QuerySection, ...] = reports[0].queries
    counts = {x: sum(x in ids for ids in SHOWN.values()) - 1 for x in "abcde"}
    assert len(sections) == min(shown, len(SHOWN))
    for section in sections:
        assert [(hit.example_id, hit.also_under) for hit in section.proponents] == [
            (x, counts[x]) for x in SHOWN[section.query_id]
        ]


def test_the_answers_of_a_block_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("".join(f'{{"text": "the cat sees {number}"}}\n' for number in range(9)))
    corpus = {"uri": str(tmp_path / "c.jsonl"), "max_length": 48}
    index = build_small(tmp_path / "index", save_model(tmp_path / "model"), corpus, preset="quality")
    query, other = as_query("the cat sees", 0), as_query("a dog", 1)
    top, bare = index.top_k([query, other], 2)
    (spoken,) = spoken_answers(index.encoder(), [query], index.encode([query])[-1].by_token)
    explained, totals = explain(index, query, top), source_totals(index.totals([query]))
    answers = [
        Attribution(query, 1.5, top, explained, spoken, top.distribution, totals), Attribution(other, 2.0, bare),
    ]  # fmt: skip
    read = from_parquet(to_parquet(answers), [query, other], 2)
    assert read is not None
    for answer, stored in zip(answers, read, strict=True):
        assert (stored.spoken, stored.distribution) == (answer.spoken, answer.distribution)
        assert stored.totals == answer.totals
    assert read[0].explanation is not None
    assert read[0].explanation.training_tokens == explained.training_tokens
    assert read[0].explanation.layers == explained.layers and read[1].explanation is None
