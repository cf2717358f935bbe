"""The settings of the site make a dead link or anchor fail; runs where MkDocs is installed (`make docs`)."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs_generators.benchmark_results import REPOSITORY
from tests.patience import patience

pytest.importorskip("mkdocs")


class _Loader(yaml.SafeLoader):
    """Reads the settings without MkDocs' own tags."""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    settings = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), _Loader)
    kept = {name: settings[name] for name in ("site_name", "validation", "use_directory_urls")}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("# Other\n\n## Place\n")
    kept["nav"] = ["index.md", "other.md"]
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(kept))
    return tmp_path


def build(site: Path, text: str) -> subprocess.CompletedProcess:
    (site / "docs" / "index.md").write_text(f"# Home\n\n{text}\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=site, capture_output=True, text=True, timeout=patience(120), check=False)


def test_good_links_pass(site: Path) -> None:
    done = build(site, "[x](other.md#place) [y](#home) [z](https://example.com)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("link", ["none.md", "other.md#none", "#none", "/other.html", "../README.md"])
def test_a_dead_link_fails(site: Path, link: str) -> None:
    done = build(site, f"[x]({link})")
    assert done.returncode != 0
    assert link.lstrip("#") in done.stderr
