"""Invariant: every file that is installed from an index is named by its hash, so that no other is installed."""

import hashlib
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.infra.files import ROOT, instructions

LISTS = {
    path: (ROOT / path).read_text()
    for path in (
        "constraints.txt",
        "constraints-dev.txt",
        "infra/torch-cpu.txt",
        "infra/torch-cuda.txt",
        "tests/servers/swift-constraints.txt",
    )
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_REQUIREMENT = re.compile(r"([a-z0-9.-]+)==([^\s;]+)( ; [^\\]+)?( --hash=sha256:[0-9a-f]{64})+")


def listed(path: str) -> dict[str, str]:
    """Versions by name. Every requirement must have a version and hashes."""
    text = LISTS[path].replace("\\\n", "")
    lines = [re.sub(r" +", " ", line) for line in text.splitlines() if line and not line.startswith("#")]
    matches = [(line, _REQUIREMENT.fullmatch(line)) for line in lines]
    assert not [line for line, match in matches if match is None]
    versions = {canonicalize_name(match[1]): match[2] for _, match in matches if match is not None}
    assert len(versions) == len(lines) > 0
    return versions


@pytest.mark.parametrize("path", LISTS)
def test_every_requirement_has_a_version_and_hashes(path: str) -> None:
    assert listed(path)


def test_the_lists_contain_what_the_project_needs() -> None:
    run, every = listed("constraints.txt"), listed("constraints.txt") | listed("constraints-dev.txt")
    assert not run.keys() & listed("constraints-dev.txt").keys()
    wanted = [(requirement, run) for requirement in PROJECT["dependencies"]]
    for name, extra in PROJECT["optional-dependencies"].items():
        wanted += [(one, run if name in ("build", "serve") else every) for one in extra]
    for text, versions in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name not in ("torch", "lorif-pipeline"):
            assert requirement.specifier.contains(versions[name]), text
    assert int(run["setuptools"].partition(".")[0]) >= 77  # the project is built without fetching it


def test_torch_has_one_version_and_only_its_cuda_build_needs_nvidias_packages() -> None:
    cpu, cuda, run = listed("infra/torch-cpu.txt"), listed("infra/torch-cuda.txt"), listed("constraints.txt")
    (wanted,) = (text for text in PROJECT["dependencies"] if Requirement(text).name == "torch")
    assert Requirement(wanted).specifier.contains(cuda["torch"])
    assert cpu == {"torch": f"{cuda['torch']}+cpu"} and "torch" not in run
    assert any(name.startswith("nvidia-") for name in cuda)
    assert not any(name.startswith(("nvidia-", "cuda-", "triton")) for name in run | cpu)
    assert not cuda.keys() & run.keys()


def installs() -> list[str]:
    """The arguments of every `pip install` of the Makefile, the image and the README."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    shared = re.findall(r"^PIP_INSTALL := pip install (.*)$", makefile, re.M)
    assert len(shared) == 1
    image = "\n".join(rest for word, rest in instructions() if word == "RUN")
    text = "\n".join([makefile.replace("$(PIP_INSTALL)", f"pip install {shared[0]}"), image, readme()])
    return re.findall(r"pip install ((?:[^\n&|])*)", text)


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_nothing_is_installed_without_its_hash() -> None:
    """Apart from the project itself, without dependencies, and with the setuptools that is installed.

    The README also shows an installation of the wheel without pins.
    """
    commands = [command for command in installs() if not command.startswith("'dist/")]
    assert len(commands) >= 9
    for command in commands:
        words = shlex.split(command.split("2>")[0])
        own = [word for word in words if word == "." or word.startswith("dist/")]
        if own:
            assert "--no-deps" in words and ("--no-build-isolation" in words or own != ["."]), command
        else:
            assert {"--no-deps", "--require-hashes"} <= set(words), command
            options = ("--requirement", "--index-url")
            following = {words[i + 1] for i, word in enumerate(words[:-1]) if word in options}
            assert [word for word in words if not word.startswith("--") and word not in following] == [], command


def test_no_test_and_no_deployment_installs_anything_else() -> None:
    """The documentation may name an extra of the project."""
    places = [ROOT / ".ci", ROOT / "infra", ROOT / "prefect.yaml", ROOT / "docs", ROOT / "CONTRIBUTING.md"]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]
    texts = {
        file.relative_to(ROOT).as_posix(): file for file in files if file.suffix in ("", ".sh", ".md", ".yaml")
    }
    command = re.compile("pip install(?! 'lorif-pipeline)")
    found = {name for name, file in texts.items() if file.is_file() and command.search(file.read_text())}
    assert found == {"infra/Dockerfile"}


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    """One byte more, and the options of the Makefile."""
    wheel = tmp_path / "small-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small.py", "")
        archive.writestr(
            "small-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("small-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1\n")
        archive.writestr("small-1.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tmp_path / "list.txt").write_text(f"small==1 --hash=sha256:{digest}\n")
    (options,) = re.findall(r"^PIP_INSTALL := pip install (.*)$", (ROOT / "Makefile").read_text(), re.M)
    command = [sys.executable, "-m", "pip", "install", *options.split(), "--isolated", "--no-index"]
    command += ["--find-links", str(tmp_path), "--requirement", str(tmp_path / "list.txt"), "--target"]
    subprocess.run([*command, str(tmp_path / "good")], check=True)
    with wheel.open("ab") as file:
        file.write(b"\0")
    run = subprocess.run([*command, str(tmp_path / "bad")], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "DO NOT MATCH THE HASHES" in run.stderr
    assert (tmp_path / "good" / "small.py").exists() and not (tmp_path / "bad").exists()
