"""Invariant: the wheel works elsewhere with what its metadata name, and says which extra is missing."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.infra.files import ROOT

TREE = ("lorif_core", "tasks", "flows", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a copy of the tree, where setuptools leaves its files."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in TREE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder / "dist"), str(folder)], check=True)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def needed(distributions: list[Distribution], extras: set[str]) -> dict[str, Distribution]:
    """The installed distributions, by name, that some distributions with extras need, with all that those need."""
    found: dict[str, Distribution] = {}
    for one in distributions:
        for requirement in map(Requirement, one.requires or ()):
            marker = requirement.marker
            wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})
            if wanted and requirement.name not in found:
                found[requirement.name] = distribution(requirement.name)
                found |= needed([found[requirement.name]], requirement.extras)
    return found


def environment(folder: Path, wheel: Path, extras: set[str]) -> Path:
    """The `bin` of a new environment with the wheel, and with links to the installed packages that it needs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, str(wheel)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (metadata,) = packages.glob("lorif_pipeline-*.dist-info")
    for installed in needed([Distribution.at(metadata)], extras).values():
        for entry in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            link = packages / entry
            if not link.exists() and not entry.endswith(".pth"):
                link.symlink_to(str(installed.locate_file(entry)))
    return folder / "bin"


def run(program: Path, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of an environment, which sees nothing of this one."""
    kept = ("PATH", "LORIF_CACHE", "RAY_worker_niceness", "OMP_NUM_THREADS")
    variables = {name: os.environ[name] for name in kept if name in os.environ} | {"HOME": str(folder)}
    return subprocess.run(
        [str(program), *words], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


SCRIPT = """
import sys
import lorif_core as lc
texts = [f"the cat sees {number} trees" for number in range(40)]
index = lc.build(model=sys.argv[1], corpus=texts, index="index", columns={"max_length": 64})
print(index.query("the cat", k=1).proponents[0].text)
assert not {"ray", "prefect", "fastapi"} & sys.modules.keys()
"""


def test_without_extras_it_builds_in_python_asks_and_names_what_is_missing(
    wheel: Path, model_folder: Path, tmp_path: Path
) -> None:
    programs = environment(tmp_path / "base", wheel, set())
    version = run(programs / "lorif", "--version", folder=tmp_path)
    assert version.stdout == "lorif 0.1.0\n", version.stderr
    built = run(programs / "python", "-c", SCRIPT, str(model_folder), folder=tmp_path)
    assert built.returncode == 0 and "the cat sees" in built.stdout, built.stderr
    asked = run(programs / "lorif", "query", "index", "the cat", "--top-k", "1", "--json", folder=tmp_path)
    assert asked.returncode == 0 and json.loads(asked.stdout)["proponents"], asked.stderr
    for words, extra in {("build", "-c", "x"): "build", ("serve", "index"): "serve"}.items():
        refused = run(programs / "lorif", *words, folder=tmp_path)
        assert refused.returncode == 2
        assert refused.stderr == (
            f"lorif: error: lorif {words[0]} needs packages that are not installed: "
            f"pip install 'lorif-pipeline[{extra}]'\n"
        )


def test_with_the_extra_it_plays_the_first_act_of_the_demo(wheel: Path, tmp_path: Path) -> None:
    programs = environment(tmp_path / "build", wheel, {"build"})
    played = run(programs / "lorif", "demo", "--first-act", "--json", folder=tmp_path)
    assert played.returncode == 0, played.stderr
    summary = json.loads(played.stdout)
    assert summary["generation"] == 1 and summary["rows"] == 224
    assert "The model&#39;s own answer" in (tmp_path / "demo-out" / "report.html").read_text(encoding="utf-8")
