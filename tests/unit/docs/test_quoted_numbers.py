"""No page quotes a number of a benchmark that the benchmark's file does not have."""

import json
from pathlib import Path

import pytest

from docs_generators.benchmark_results import REPOSITORY
from docs_generators.quoted_numbers import problems

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
COMMENT = "<!-- from benchmarks/results/lds.json -->\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    result = {
        "run": {"cores": 7.25},
        "lds": [0.6027, -0.0412],
        "rows_per_s": 194_706.4,
        "bytes": 4228,
        "share": 0.012,
    }
    (folder / "lds.json").write_text(json.dumps(result))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_the_numbers_of_a_page_are_those_of_the_benchmarks(page: Path) -> None:
    assert list(problems(page.read_text(encoding="utf-8"), REPOSITORY)) == []


@pytest.mark.parametrize(
    "block",
    [
        "LDS .603, 4,228 bytes and 195,000 rows a second.",
        "LDS 0.6027; 1.2 % of the build; a difference of -.041.",
        "| LDS |\n| --- |\n| .60 |",
        "No number is checked in `LDS 0.9`, in [arXiv 2601.21929](https://arxiv.org/abs/2601.21929) or of 2.13.0.",
    ],
)
def test_a_rounded_number_is_found(repository: Path, block: str) -> None:
    assert list(problems(COMMENT + block, repository)) == []
    assert list(problems(f"{COMMENT}\n{block}", repository)) == []


@pytest.mark.parametrize("number", [".604", "0.6028", "4,227", "196,000", "1.3 %", "+.041", "7.25"])
def test_another_number_is_refused(repository: Path, number: str) -> None:
    (problem,) = problems(f"{COMMENT}The LDS is .603, not {number}.", repository)
    assert number in problem


def test_a_block_that_speaks_of_a_benchmark_needs_a_comment(repository: Path) -> None:
    for block in ("An LDS of .603.", "It scans 195,000 rows a second.", "| rows/s |\n| --- |\n| 33,300 |"):
        (problem,) = problems(f"Text.\n\n{block}\n\nMore text, of 4,000 words.", repository)
        assert "no comment" in problem
    assert list(problems("```\nLDS .603\n```\n\nThe LDS is a rank correlation.", repository)) == []


def test_a_comment_is_for_one_block_only(repository: Path) -> None:
    (problem,) = problems(f"{COMMENT}An LDS of .603.\n\nAn LDS of .603.", repository)
    assert "no comment" in problem


def test_numbers_of_others_and_examples_are_let_through(repository: Path) -> None:
    assert list(problems("<!-- from arXiv 2601.21929 -->\nThe paper's LDS is .1392.", repository)) == []
    assert list(problems("<!-- not a measurement -->\nAn LDS of 1.0 is perfect.", repository)) == []


def test_a_source_must_be_there(repository: Path) -> None:
    for name in ("benchmarks/results/none.json", "README.md"):
        (problem,) = problems(f"<!-- from {name} -->\nAn LDS of .603.", repository)
        assert "is no file of benchmarks/results" in problem
