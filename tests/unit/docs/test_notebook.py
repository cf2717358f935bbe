"""Invariant: the notebook runs from the top, and its proponents are the sentences that state the fact."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[3] / "docs" / "tutorials" / "notebook.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; returns the value of its last line, as a notebook would show it."""
    *statements, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        exec(compile(source, NOTEBOOK.name, "exec"), names)
        return None
    exec(compile(ast.Module(statements, []), NOTEBOOK.name, "exec"), names)
    return eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)  # noqa: S307 - our own notebook


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names of the notebook after all of its cells."""
    names: dict[str, Any] = {"__name__": "__main__", "shown": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("notebook")))
        for cell in json.loads(NOTEBOOK.read_text())["cells"]:
            if cell["cell_type"] == "code":
                names["shown"].append(run_cell("".join(cell["source"]), names))
    return names


def test_every_answer_is_the_fact_itself(names: dict[str, Any]) -> None:
    strongest = names["shown"][-1]
    right = [example_id.startswith(f"{land}-") for land, example_id in strongest.items()]
    assert len(right) == 6 and sum(right) >= 5, strongest


def test_the_answer_is_shown_as_a_page(names: dict[str, Any]) -> None:
    assert names["answer"] in names["shown"]
    assert "France" in names["answer"]._repr_html_()
    assert names["answer"].proponents[0].example_id.startswith("France-")
