"""The page of benchmarks has every result, and every result says when and where it was measured."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.run_record import write_result
from docs_generators.benchmark_results import REPOSITORY, RESULTS, rounded
from docs_generators.benchmarks_page import benchmarks_page
from docs_generators.quoted_numbers import problems

FILES = sorted((REPOSITORY / RESULTS).rglob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_result_is_on_the_page_and_says_when_and_where(path: Path) -> None:
    run = json.loads(path.read_text())["run"]
    assert {"date", "commit", "machine"} <= set(run)
    assert f"<!-- from {path.relative_to(REPOSITORY)} -->" in benchmarks_page()


def test_the_numbers_of_the_page_are_those_of_its_files() -> None:
    assert list(problems(benchmarks_page(), REPOSITORY)) == []


def test_the_commands_of_the_page_exist() -> None:
    modules = set(re.findall(r"python -m ([\w.]+)", benchmarks_page()))
    assert len(modules) > 10
    assert [name for name in modules if not (REPOSITORY / f"{name.replace('.', '/')}.py").is_file()] == []


def test_a_result_is_written_with_a_record_of_its_run(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, {"rows": 3, "run": {"date": "long ago"}})
    written = json.loads(path.read_text())
    assert set(written["run"]) == {"date", "commit", "machine", "torch"}
    assert written["run"]["date"] != "long ago" and written["rows"] == 3


def test_large_rates_are_rounded_to_three_digits() -> None:
    assert [rounded(rate) for rate in (194_706.4, 33_297.3, 956.4, 9_999.9)] == [
        "195,000",
        "33,300",
        "956",
        "10,000",
    ]
