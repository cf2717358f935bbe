"""Invariant: a flow runs the same steps with the same retries, whether Prefect has an API to report to or not."""

import subprocess
import sys
from pathlib import Path

import pytest

from lorif_core.errors import LorifError, StoreUnavailableError, UserError
from tasks import environment, orchestration
from tasks.orchestration import Run, current_run, flow, run_log, runs_in_prefect, task


class Failing:
    """Raises the given errors, one a call, and then returns the number of calls."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self._calls = 0

    def __call__(self) -> int:
        self._calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return self._calls


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays between attempts, which do not take place."""
    delays: list[float] = []
    monkeypatch.setattr(orchestration.time, "sleep", delays.append)
    return delays


def test_a_retried_task_runs_again_after_an_outage_with_the_delays_of_prefect(slept: list[float]) -> None:
    failing = Failing(StoreUnavailableError("it is down"), OSError("a socket"))
    assert task("step", retried=True)(failing)() == 3
    assert slept == orchestration.DELAYS == orchestration.PREFECT_RETRIES["retry_delay_seconds"]


def test_the_last_attempt_of_a_retried_task_raises(slept: list[float]) -> None:
    errors = [StoreUnavailableError(str(number)) for number in range(4)]
    with pytest.raises(StoreUnavailableError, match="2"):
        task("step", retried=True)(Failing(*errors))()
    assert len(slept) == 2


@pytest.mark.parametrize("error", [UserError("wrong"), LorifError("broken"), MemoryError()])
def test_what_would_fail_again_is_not_retried(error: Exception, slept: list[float]) -> None:
    with pytest.raises(type(error)):
        task("step", retried=True)(Failing(error))()
    assert slept == []


def test_a_task_without_retries_raises_at_once(slept: list[float]) -> None:
    with pytest.raises(StoreUnavailableError):
        task("step")(Failing(StoreUnavailableError("it is down")))()
    assert slept == []


def test_a_run_has_the_name_and_the_parameters_of_its_flow_and_inner_flows_have_their_own() -> None:
    runs: list[Run] = []

    @flow("inner", "inner {number}")
    def inner(number: int) -> None:
        runs.append(current_run())

    @flow("outer", "outer {word}")
    def outer(word: str, prefix: str | None = None) -> None:
        runs.append(current_run())
        inner(2)
        runs.append(current_run())

    outer("x")
    assert [run.name for run in runs] == ["outer x", "inner 2", "outer x"]
    assert runs[0] == runs[2] and runs[0].id != runs[1].id and runs[0].parameters["prefix"] is None
    assert runs[0].deployment is None and not runs_in_prefect()
    with pytest.raises(RuntimeError):
        current_run()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("PREFECT_API_URL", "http://127.0.0.1:1/api"),
        (".prefect/profiles.toml", 'active = "own"\n[profiles.own]\nPREFECT_API_URL = "http://127.0.0.1:1/api"\n'),
        ("prefect.toml", '[api]\nurl = "http://127.0.0.1:1/api"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "http://127.0.0.1:1/api"\n'),
        (".env", "PREFECT_API_URL=http://127.0.0.1:1/api\n"),
        (None, ""),
    ],
)
def test_an_api_counts_wherever_prefect_reads_it(file: str | None, text: str, tmp_path: Path) -> None:
    """Prefect reads its settings when it is imported, so each case is a process of its own."""
    variables = {file: text} if file == "PREFECT_API_URL" else {}
    if file is not None and not variables:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    code = "import sys; from tasks.environment import has_prefect_api as h; print(h(), 'prefect' in sys.modules)"
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"HOME": str(tmp_path), "PYTHONPATH": str(root), "PATH": "/usr/bin", **variables},
    )  # fmt: skip
    assert result.stdout.split() == (["False", "False"] if file is None else ["True", "True"])


def test_a_folder_named_like_a_settings_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a virtual environment in .env."""
    (tmp_path / ".env").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in environment._PREFECT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert not environment._mentions_prefect()


def test_the_same_flow_under_prefect_has_a_run_of_prefect(prefect_server: None) -> None:
    @task("step", retried=True)
    def step() -> Run:
        run_log().info("a step")
        return current_run()

    @flow("outer", "outer {word}")
    def outer(word: str) -> Run:
        assert runs_in_prefect()
        return step()

    run = outer("x")
    assert run.name == "outer x" and run.flow == "outer" and run.parameters["word"] == "x"
