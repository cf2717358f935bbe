"""A real Chromium, the report of a small real index, and the server on it.

Pages may neither say anything on the console nor ask for anything beyond their own address.
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
_TIMEOUT = 15_000  # milliseconds; of a click, not of an answer
_ANSWER_TIMEOUT = 60_000
expect.set_options(timeout=_ANSWER_TIMEOUT)


@dataclass(slots=True)
class Watched:
    """A page, and what it said on the console or asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def serious(self) -> list[str]:
        """What axe-core finds wrong, of serious and critical impact."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{rule['id']}: {node['target']}" for rule in found if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]  # fmt: skip

    def shoot(self, name: str) -> None:
        """Keep a picture of the window, if somebody wants to look at them."""
        if SCREENSHOTS:
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


Open = Callable[..., Watched]


@pytest.fixture(scope="session")
def chromium(report: str) -> Iterator[Browser]:
    """Begins after the flows have run: they do not beside Playwright's event loop."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("there is no chromium; install Debian's package of that name")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Open]:
    """Opens pages, each as a visitor of its own; by default in a light window of a desktop."""
    contexts = []

    def open_page(address: str, *, width: int = 1280, scheme: Any = "light", scripts: bool = True) -> Watched:
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts,
            reduced_motion="reduce",
        )  # fmt: skip
        context.set_default_timeout(_TIMEOUT)
        contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.on("console", lambda message: watched.said.append(message.text))
        watched.page.on("pageerror", lambda error: watched.said.append(str(error)))
        watched.page.on("request", lambda request: watched.asked.append(request.url))
        watched.page.goto(address)
        return watched

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def asked(
    make_config: MakeConfig, prefect_server: None, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Config:
    """The config of an index over two files; texts are of a few words, one is long and one is markup."""
    from flows.build import build

    folder = tmp_path_factory.mktemp("browser")
    things, deeds = ("cat", "dog", "bird", "tree"), ("sees", "likes", "runs to")
    for name, first in (("animals.jsonl", "the"), ("others.jsonl", "a small")):
        rows = [(f"{name[0]}{i}", f"{first} {things[i % 4]} {deeds[i % 3]} {i}") for i in range(24)]
        rows += [LONG, ("markup", ATTACK)] if name == "others.jsonl" else []
        lines = [json.dumps({"id": example_id, "text": text}) + "\n" for example_id, text in rows]
        (folder / "corpus").mkdir(exist_ok=True)
        (folder / "corpus" / name).write_text("".join(lines))
    config = make_config(folder / "index", corpus={"uri": str(folder / "corpus")})
    build(config)
    return config


@pytest.fixture(scope="session")
def report(asked: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the report that `lorif attribute` writes of all rows to a few queries."""
    from flows.attribute import attribute

    folder = tmp_path_factory.mktemp("answers")
    (folder / "q.jsonl").write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    attribute(asked, str(folder / "q.jsonl"), str(folder / "out"), 50)
    return (folder / "out" / "report.html").as_uri()


@contextmanager
def serving(index: str, **environment: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """`lorif serve` on a free port: its address, and its process."""
    process = subprocess.Popen(
        [*LORIF, "serve", index, "--port", "0"], env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        told = process.stdout.readline() if process.stdout else ""
        found = re.search(r"http://\S+", told)
        assert found, f"the server said {told!r}"
        yield found[0], process
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="session")
def explorer(asked: Config) -> Iterator[str]:
    """The address of a server on the index."""
    with serving(asked.index) as (address, _):
        yield address
