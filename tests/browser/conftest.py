"""Fixtures: a real Chromium, the report of a small real index, and a server on this index.

A page must write nothing to the console and request nothing from other addresses.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lorif_core.config import Config
from tests.integration.conftest import MakeConfig, make_config
from tests.integration.lorif import LORIF
from tests.patience import patience

__all__ = ["make_config"]

ATTACK = "<img src=x onerror=\"document.title='attacked'\"><script>document.title='attacked'</script>"
LONG = "long", "a long row " + "about nothing at all " * 40 + "that ends with an elephant"
QUERIES: list[dict[str, Any]] = [
    {"id": "cat", "prompt": "the cat sees ", "completion": "the red bird"},
    {"id": "dog", "text": "a small dog runs"},
    {"id": "both", "group": ["the cat", "the dog"]},
]
SCREENSHOTS = os.environ.get("LORIF_SCREENSHOTS")
TOP_K = 4
_TIMEOUT = 15_000  # milliseconds, for actions such as a click
_ANSWER_TIMEOUT = 60_000
expect.set_options(timeout=patience(_ANSWER_TIMEOUT))


@dataclass(slots=True)
class Watched:
    """A page, its console messages and the URLs that it requested."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def accessibility_violations(self) -> list[str]:
        """Violations of serious or critical impact that axe-core reports."""
        violations = Axe().run(self.page).response["violations"]
        return [
            f"{rule['id']}: {node['target']}" for rule in violations if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]  # fmt: skip

    def screenshot_window(self, name: str) -> None:
        """Save a screenshot of the window if LORIF_SCREENSHOTS names a folder."""
        if SCREENSHOTS:
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


Open = Callable[..., Watched]


@pytest.fixture(scope="session")
def chromium(report: str) -> Iterator[Browser]:
    """Depends on `report`: flows cannot run while Playwright's event loop does."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("chromium is not installed; install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Open]:
    """Opens pages, each in its own browser context; by default in a light desktop window."""
    contexts = []

    def new_page(
        address: str, *, width: int = 1280, height: int = 900, scheme: Any = "light", scripts: bool = True
    ) -> Watched:
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=scripts,
            reduced_motion="reduce",
        )  # fmt: skip
        context.set_default_timeout(patience(_TIMEOUT))
        contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.on("console", lambda message: watched.console.append(message.text))
        watched.page.on("pageerror", lambda error: watched.console.append(str(error)))
        watched.page.on("request", lambda request: watched.requests.append(request.url))
        watched.page.goto(address)
        return watched

    yield new_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def indexed(
    make_config: MakeConfig, prefect_server: None, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Config:
    """The config of an index over two files of short texts, with one long text and one with markup."""
    from flows.build import build

    folder = tmp_path_factory.mktemp("browser")
    nouns, verbs = ("cat", "dog", "bird", "tree"), ("sees", "likes", "runs to")
    for name, first in (("animals.jsonl", "the"), ("others.jsonl", "a small")):
        rows = [(f"{name[0]}{i}", f"{first} {nouns[i % 4]} {verbs[i % 3]} {i}") for i in range(24)]
        rows += [LONG, ("markup", ATTACK)] if name == "others.jsonl" else []
        lines = [json.dumps({"id": example_id, "text": text}) + "\n" for example_id, text in rows]
        (folder / "corpus").mkdir(exist_ok=True)
        (folder / "corpus" / name).write_text("".join(lines))
    config = make_config(folder / "index", corpus={"uri": str(folder / "corpus")})
    build(config)
    return config


@pytest.fixture(scope="session")
def report(indexed: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the report that `lorif attribute` writes for a few queries with all rows."""
    from flows.attribute import attribute

    folder = tmp_path_factory.mktemp("answers")
    (folder / "q.jsonl").write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    attribute(indexed, str(folder / "q.jsonl"), str(folder / "out"), 50)
    return (folder / "out" / "report.html").as_uri()


@contextmanager
def serving(index: str, **environment: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run `lorif serve` on a free port; yields its address and its process."""
    process = subprocess.Popen(
        [*LORIF, "serve", index, "--port", "0"], env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        line = process.stdout.readline() if process.stdout else ""
        address = re.search(r"http://\S+", line)
        assert address, f"the server printed no address but {line!r}"
        yield address[0], process
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="session")
def explorer(indexed: Config) -> Iterator[str]:
    """The address of a server on the index."""
    with serving(indexed.index) as (address, _):
        yield address
