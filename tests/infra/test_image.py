"""Invariant: the image installs the packages of the Makefile, does not run as root, and contains no secret."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from tests.infra.files import CREDENTIAL, ROOT, instructions, pinned

STEPS = instructions()
INSTALLS = [rest for word, rest in STEPS if word == "RUN" and "pip install" in rest]


def requirements(command: str) -> list[str]:
    """The lists of packages that a shell command installs, by file name."""
    words = shlex.split(command)
    return [Path(word).name for option, word in pairwise(words) if option == "--requirement"]


def test_the_image_and_the_makefile_install_the_same() -> None:
    """Torch comes first, so that its build can be chosen, then the other packages, then the project."""
    makefile = (ROOT / "Makefile").read_text()
    start = makefile.index("$(VENV)/.installed:")
    lines = [
        line for line in makefile[start : makefile.index("touch", start)].splitlines() if "--requirement" in line
    ]
    torch, again, others = (requirements(line.partition("2>")[0].rstrip(" \\")) for line in lines)
    assert torch == again == ["torch-$(DEVICE).txt"] and others == ["constraints.txt", "constraints-dev.txt"]
    assert [requirements(command) for command in INSTALLS] == [["torch-$DEVICE.txt"], ["constraints.txt"], []]
    assert INSTALLS[2] == "pip install --no-deps --no-build-isolation . && pip check"


def test_python_is_pinned_and_supported() -> None:
    ((_, base),) = [step for step in STEPS if step[0] == "FROM"]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", base)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11"


def test_code_is_copied_after_the_large_packages_are_installed() -> None:
    """A changed module must not install torch again."""
    order = [rest for _, rest in STEPS]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for pattern in packages["find"]["include"]:
        package = pattern.removesuffix("*")
        assert order.index(f"{package} {package}") > order.index(INSTALLS[1])
    before = {
        source for word, rest in STEPS[: order.index(INSTALLS[1])] if word == "COPY" for source in _sources(rest)
    }
    assert before == {"constraints.txt", "infra/torch-cpu.txt", "infra/torch-cuda.txt"}


def test_nothing_runs_as_root() -> None:
    users = [rest for word, rest in STEPS if word == "USER"]
    assert users == ["1000"] and STEPS.index(("USER", "1000")) > STEPS.index(("RUN", INSTALLS[2]))
    assert any("useradd" in rest and "--uid 1000" in rest for _, rest in STEPS)


def test_no_layer_contains_a_secret() -> None:
    for word, rest in STEPS:
        if word in ("ARG", "ENV"):
            names = re.findall(r"(\w+)=", rest) or [rest]
            assert not [name for name in names if CREDENTIAL.search(name)]
    copied = {source for word, rest in STEPS if word == "COPY" for source in _sources(rest)}
    assert all((ROOT / source).exists() for source in copied) and "." not in copied
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*" and {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert "**/.env" in rules


def _sources(rest: str) -> list[str]:
    return [word for word in rest.split() if not word.startswith("--")][:-1]


def test_a_build_argument_selects_the_device() -> None:
    assert ("ARG", "DEVICE=cpu") in STEPS
    for device, index in {"cpu": "$CPU_INDEX", "cuda": "$CUDA_INDEX"}.items():
        assert f'{device}) index="{index}" ;;' in INSTALLS[0]
    choice = INSTALLS[0].partition("&& pip install")[0]
    run = subprocess.run(["sh", "-c", choice], env={"DEVICE": "tpu"}, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and run.stderr == "DEVICE must be cpu or cuda, not tpu\n"


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({}, ["--", "true"], "RAY_ADDRESS: must be the address of the Ray head"),
        ({"RAY_ADDRESS": "x"}, ["--"], "no command"),
    ],
)
def test_join_ray_without_an_address_or_a_command_fails(
    variables: dict[str, str], arguments: list[str], message: str
) -> None:
    script = ["bash", str(ROOT / "infra" / "join-ray.sh"), *arguments]
    run = subprocess.run(
        script, env={"PATH": "/usr/bin:/bin", **variables}, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0 and message in run.stderr


@pytest.mark.infra
def test_the_install_steps_run(tmp_path: Path) -> None:
    """Runs the commands of the Dockerfile in a virtual environment; takes minutes and 2.5 GB."""
    venv, app = tmp_path / "venv", tmp_path / "app"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    app.mkdir()
    index = os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "DEVICE": "cpu",
        "CPU_INDEX": _configured_index() or index,
    }
    for word, rest in STEPS:
        if word == "COPY" and not rest.startswith("--chmod"):
            for source in _sources(rest):
                _copy(ROOT / source, app)
        elif word == "RUN" and "pip install" in rest:
            subprocess.run(["sh", "-ec", rest], cwd=app, env=environment, check=True)
    subprocess.run(["pip", "check"], cwd=app, env=environment, check=True)
    run = subprocess.run(["lorif", "--help"], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert b"build" in run.stdout
    for program in (["ray", "--version"], ["prefect", "version"]):
        subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, check=True)
    frozen = subprocess.run(["pip", "freeze"], env=environment, capture_output=True, text=True, check=True).stdout
    for line in frozen.splitlines():
        name, _, version = line.partition("==")
        if version and name != "torch":
            assert version == pinned(name), line


def _configured_index() -> str | None:
    """The package index of pip on this machine, which may be a mirror."""
    run = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or None


def _copy(source: Path, folder: Path) -> None:
    if source.is_dir():
        shutil.copytree(
            source, folder / source.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    else:
        shutil.copy2(source, folder)
