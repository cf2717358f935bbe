"""The explorer in a real browser on a real server: it answers questions and shows error messages."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lorif_core.config import Config
from lorif_core.search.index import open_index
from lorif_core.tables.generation import now
from lorif_core.tables.store import Store
from tests.browser.conftest import ATTACK, TOP_K, Open, serving
from tests.patience import patience

pytestmark = pytest.mark.browser

TOKEN = "a-token-of-enough-characters"
ANSWERED = "#answers[aria-busy=false] section.query"


def ask(page: Page, text: str) -> None:
    page.locator("#text").fill(text)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#answers[aria-busy=true]")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_typed_question_is_answered(indexed: Config, explorer: str, open_page: Open, scheme: str) -> None:
    """The keyboard suffices, hits equal the library's, the page is accessible and sends no request elsewhere."""
    watched = open_page(explorer, scheme=scheme)
    page, keys = watched.page, watched.page.keyboard
    assert watched.accessibility_violations() == []
    watched.screenshot_window(f"explorer-begin-{scheme}")
    while page.evaluate("document.activeElement.id") != "text":
        keys.press("Tab")
    keys.type("the cat sees a bird")
    keys.press("Tab")
    keys.press("ControlOrMeta+a")
    keys.type(str(TOP_K))
    keys.press("Enter")
    expect(page.locator("#progress")).to_contain_text("Answered in")
    (top,) = open_index(indexed.index).top_k(["the cat sees a bird"], TOP_K)
    for side, hits in (("pro", top.proponents), ("con", top.opponents)):
        assert page.locator(f".{side} .hit .id").all_inner_texts() == [hit.example_id for hit in hits]
    assert page.locator(".query-text .t").count() == len("the cat sees a bird") - 1
    page.locator("#answers").focus()
    keys.press("j")
    expect(page.locator(".pro .rank").first).to_be_focused()
    assert watched.accessibility_violations() == []
    watched.screenshot_window(f"explorer-{scheme}")
    assert watched.console == [] and {url.rstrip("?") for url in watched.requests} == {
        explorer,
        f"{explorer}answers",
    }


def test_completions_totals_and_search_options(explorer: str, open_page: Open) -> None:
    watched = open_page(explorer)
    page = watched.page
    page.get_by_label("Prompt with completion").check()
    page.get_by_label("Prompt", exact=True).fill("the dog ")
    page.get_by_label("Completion (only").fill("runs to a tree")
    page.get_by_label("Only rows where").fill("tokens > 10")
    page.locator("#normalise").select_option("cosine")
    expect(page.get_by_label("Show token contributions")).to_be_disabled()
    page.get_by_label("Sum the scores of all rows").check()
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(ANSWERED)).to_be_visible()
    expect(page.locator(".completion")).to_have_text("runs to a tree")
    assert page.locator(".sources tbody tr").count() == 2
    assert page.locator(".sources td:nth-child(5)").all_inner_texts() != ["0", "0"]
    page.locator("#filter-file").select_option(label="animals.jsonl")
    expect(page.locator(".filters [role=status]")).to_contain_text("shown")
    assert all(name.startswith("a") for name in page.locator(".hit:visible .id").all_inner_texts())
    assert watched.console == []


def test_an_error_is_shown_and_the_next_question_is_answered(explorer: str, open_page: Open) -> None:
    page = open_page(explorer).page
    page.get_by_label("Only rows where").fill("no such thing")
    ask(page, ATTACK)
    expect(page.get_by_role("alert")).not_to_be_empty()
    assert "no such thing" in page.get_by_role("alert").inner_text()
    page.get_by_label("Only rows where").fill("")
    ask(page, ATTACK)
    expect(page.locator(ANSWERED)).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()
    assert page.locator(".query-text").inner_text() == ATTACK and page.title() != "attacked"


def test_recent_questions_can_be_shown_again(explorer: str, open_page: Open) -> None:
    watched = open_page(explorer)
    page = watched.page
    ask(page, "a red bird")
    expect(page.locator(".query-text")).to_have_text("a red bird")
    expect(page.locator("#recent")).to_be_hidden()
    ask(page, "an old tree")
    expect(page.locator(".query-text")).to_have_text("an old tree")
    requests = len(watched.requests)
    page.get_by_role("button", name="a red bird").click()
    expect(page.locator(".query-text")).to_have_text("a red bird")
    expect(page.locator("#text")).to_have_value("a red bird")
    assert len(watched.requests) == requests, "the answer must come from the history, not from the server"
    assert watched.accessibility_violations() == [] and watched.console == []


def test_a_wrong_token_and_a_stopped_server_are_reported(indexed: Config, open_page: Open) -> None:
    with serving(indexed.index, LORIF_SERVE_TOKEN=TOKEN) as (address, process):
        page = open_page(address).page
        page.get_by_label("Server token").fill("not this one")
        ask(page, "a red bird")
        expect(page.get_by_role("alert")).to_contain_text("token")
        expect(page.get_by_label("Server token")).to_be_focused()
        page.get_by_label("Server token").fill(TOKEN)
        ask(page, "a red bird")
        expect(page.locator(ANSWERED)).to_be_visible()
        page.reload()
        expect(page.get_by_label("Server token")).to_have_value(TOKEN)
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        process.terminate()
        process.wait()
        ask(page, "a red bird")
        expect(page.get_by_role("alert")).to_contain_text("can't be reached")


def test_a_newer_generation_is_announced(indexed: Config, open_page: Open, tmp_path: Path) -> None:
    shutil.copytree(indexed.index, tmp_path / "index")
    store = Store(str(tmp_path / "index"))
    with serving(store.uri) as (address, _):
        page = open_page(address).page
        ask(page, "a red bird")
        expect(page.locator(ANSWERED)).to_be_visible()
        expect(page.locator("#newer")).to_be_empty()
        store.publish(replace(store.latest(), generation=2, created_at=now()))
        deadline = time.monotonic() + patience(60)
        while page.locator("#newer").inner_text() == "" and time.monotonic() < deadline:
            ask(page, "a red bird")
        expect(page.locator("#newer")).to_contain_text("Answers now come from generation 2")


@pytest.mark.parametrize("width", [320, 400])
def test_a_narrow_window_does_not_scroll_sideways(explorer: str, open_page: Open, width: int) -> None:
    watched = open_page(explorer, width=width)
    ask(watched.page, "the small cat")
    expect(watched.page.locator(ANSWERED)).to_be_visible()
    assert watched.page.evaluate("document.documentElement.scrollWidth") == width
    watched.screenshot_window(f"explorer-{width}")
