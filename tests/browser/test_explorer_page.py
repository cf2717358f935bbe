"""The explorer in a real browser on a real server: the answer comes first, and errors leave it readable."""

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
from tests.browser.asking import ANSWERED, ask, cards, type_question, wait_for_colours
from tests.browser.conftest import ATTACK, TOP_K, Open, serving
from tests.patience import patience

pytestmark = pytest.mark.browser

TOKEN = "a-token-of-enough-characters"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_typed_question_is_answered(indexed: Config, explorer: str, open_page: Open, scheme: str) -> None:
    """The keyboard suffices, hits equal the library's, the page is accessible and sends no request elsewhere."""
    watched = open_page(explorer, scheme=scheme)
    page, keys = watched.page, watched.page.keyboard
    expect(page.locator("#start button")).to_have_count(3)
    assert watched.accessibility_violations() == []
    watched.screenshot_window(f"explorer-begin-{scheme}")
    type_question(page, "the cat sees a bird")
    while page.evaluate("document.activeElement.id") != "show-options":
        keys.press("Tab")
    keys.press("Enter")
    keys.press("Tab")
    keys.press("ControlOrMeta+a")
    keys.type(str(TOP_K))
    assert watched.accessibility_violations() == []
    keys.press("Enter")
    wait_for_colours(page)
    (top,) = open_index(indexed.index).top_k(["the cat sees a bird"], TOP_K)
    for side, hits in (("pro", top.proponents), ("con", top.opponents)):
        assert page.locator(f".{side} .hit .id").all_text_contents() == [hit.example_id for hit in hits]
    assert page.locator(".query-text .t").count() == len("the cat sees a bird") - 1
    expect(page.locator(".query-text")).to_be_focused()
    keys.press("j")
    expect(page.locator(".pro .rank").first).to_be_focused()
    assert watched.accessibility_violations() == []
    watched.screenshot_window(f"explorer-{scheme}")
    assert watched.console == [] and {url.rstrip("?") for url in watched.requests} == {
        explorer,
        f"{explorer}suggestions",
        f"{explorer}answers",
    }


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (800, 900), (390, 844)])
def test_the_answer_comes_into_the_window(explorer: str, open_page: Open, width: int, height: int) -> None:
    """The form folds to one line, and question and first passage are visible; also below a long page."""
    watched = open_page(explorer, width=width, height=height)
    page = watched.page
    page.locator("#start button").nth(1).click()
    for _ in range(2):
        wait_for_colours(page)
        expect(page.locator("#question")).to_be_hidden()
        expect(page.locator(".query-text")).to_be_in_viewport(ratio=1)
        expect(page.locator(".pro .hit").first).to_be_in_viewport(ratio=0.4 if width < 500 else 0.9)
        assert page.locator("#folded").bounding_box()["height"] < (60 if width == 1400 else 140)  # type: ignore[index]
        assert page.evaluate("document.documentElement.scrollWidth") == width
        watched.screenshot_window(f"explorer-{width}")
        page.get_by_role("button", name="Edit the question").click()
        expect(page.locator("#answer")).to_be_focused()
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.locator("#answer").fill("a small dog runs to a tree")
        page.keyboard.press("ControlOrMeta+Enter")
        expect(page.locator(".query-text")).to_contain_text("a small dog runs")
    wait_for_colours(page)
    assert watched.accessibility_violations() == [] and watched.console == []


def test_ranks_come_before_colours_and_reading_is_not_disturbed(explorer: str, open_page: Open) -> None:
    watched = open_page(explorer)
    page = watched.page
    held = []
    page.route(
        "**/answers",
        lambda route: (
            held.append(route) if '"explain":true' in (route.request.post_data or "") else route.continue_()
        ),
    )
    type_question(page, "the cat sees the bird")
    page.keyboard.press("ControlOrMeta+Enter")
    expect(page.locator(ANSWERED)).to_be_visible()
    expect(page.locator("#progress")).to_contain_text("Ranked in")
    assert page.locator(".query-text .t").count() == 0
    page.locator(".pro .rest > summary").click()
    page.locator(".pro .rank").nth(4).focus()
    rank = page.locator(".pro .rank").nth(4)
    place = rank.bounding_box()
    while not held:
        page.wait_for_timeout(50)
    held[0].continue_()
    wait_for_colours(page)
    expect(page.locator(".pro .rest")).to_have_attribute("open", "")
    expect(page.locator(".pro .rank").nth(4)).to_be_focused()
    after = rank.bounding_box()
    assert place and after and abs(after["y"] - place["y"]) < 2 and watched.console == []


def test_filters_are_chips_that_write_sql_and_sql_becomes_chips(explorer: str, open_page: Open) -> None:
    watched = open_page(explorer)
    page = watched.page
    page.get_by_role("button", name="Options and filters").click()
    page.locator("#filter-column").select_option("tokens")
    page.locator("#filter-operator").select_option(label="more than")
    page.locator("#filter-value").fill("10")
    page.get_by_role("button", name="Add filter").click()
    page.locator("#filter-column").select_option("uri")
    page.locator("#filter-operator").select_option(label="containing")
    page.locator("#filter-value").fill("it's")
    page.keyboard.press("Enter")
    where = page.locator("#where")
    expect(where).to_have_value("tokens > 10 AND contains(uri, 'it''s')")
    page.get_by_role("button", name="Remove the filter contains(uri, 'it''s')").click()
    expect(where).to_have_value("tokens > 10")
    where.fill("tokens BETWEEN 5 AND 90 AND (row < 9 OR row > 10) AND uri <> ' AND '")
    chips = page.locator("#question .chip")
    expect(chips).to_have_count(3)
    page.locator("#filter-value").fill("animals")
    page.keyboard.press("Enter")
    page.get_by_label("Compare the source files").check()
    ask(page, "the small cat")
    assert {name[0] for name in cards(page)} == {"a"}
    page.locator("#folded").get_by_role("button", name="Remove the filter contains(uri, 'animals')").click()
    wait_for_colours(page)
    assert {name[0] for name in cards(page)} > {"a"}
    assert page.locator(".sources tbody tr").count() == 2
    assert watched.accessibility_violations() == [] and watched.console == []


def test_an_error_dims_the_former_answer_and_the_next_question_is_answered(explorer: str, open_page: Open) -> None:
    page = open_page(explorer).page
    ask(page, ATTACK)
    page.get_by_role("button", name="Edit the question").click()
    page.get_by_role("button", name="Options and filters").click()
    page.locator("#where").fill("no such thing")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("no such thing")
    expect(page.locator("#answers.stale section.query")).to_have_css("opacity", "0.5")
    expect(page.locator("#question")).to_be_visible()
    page.locator("#where").fill("")
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_colours(page)
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.locator("section.query")).to_have_css("opacity", "1")
    assert page.locator(".query-text").inner_text() == ATTACK and page.title() != "attacked"


def test_escape_ends_what_was_begun_last(explorer: str, open_page: Open) -> None:
    page = open_page(explorer).page
    ask(page, "a red bird")
    page.get_by_role("button", name="Edit the question").press("Enter")
    page.locator("#answer").fill("something else")
    page.keyboard.press("Escape")
    expect(page.locator("#question")).to_be_hidden()
    expect(page.get_by_role("button", name="Edit the question")).to_contain_text("a red bird")
    page.locator("#export summary").press("Enter")
    expect(page.get_by_role("button", name="Table as CSV")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Table as CSV")).to_be_hidden()
    page.keyboard.press("/")
    page.keyboard.type("elephant")
    expect(page.locator(".filters [role=status]")).to_contain_text("shown")
    page.keyboard.press("Escape")
    expect(page.locator("#filter-text")).to_have_value("")
    page.route("**/answers", lambda route: None)
    page.get_by_role("button", name="Edit the question").click()
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#cancel")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#progress")).to_have_text("Cancelled.")


def test_a_long_question_is_clamped_and_its_cut_is_marked(explorer: str, open_page: Open) -> None:
    watched = open_page(explorer, width=1400)
    page = watched.page
    ask(page, "the cat sees a very long story " * 40)
    text = page.locator(".query-text")
    expect(page.locator(".pro .hit").first).to_be_in_viewport(ratio=0.9)
    clamped = text.bounding_box()["height"]  # type: ignore[index]
    assert page.locator(".cut").first.text_content() and "cut off" in page.locator(".cut-note").inner_text()
    page.get_by_label("Show the whole question").check()
    assert text.bounding_box()["height"] > 2 * clamped and watched.console == []  # type: ignore[index]


def test_a_wrong_token_and_a_stopped_server_are_reported(indexed: Config, open_page: Open) -> None:
    with serving(indexed.index, LORIF_SERVE_TOKEN=TOKEN) as (address, process):
        page = open_page(address).page
        expect(page.locator("#start")).to_be_hidden()
        page.get_by_label("Server token").fill("not this one")
        type_question(page, "a red bird")
        page.keyboard.press("ControlOrMeta+Enter")
        expect(page.get_by_role("alert")).to_contain_text("token")
        expect(page.get_by_label("Server token")).to_be_focused()
        page.get_by_label("Server token").fill(TOKEN)
        page.get_by_role("button", name="Ask", exact=True).click()
        wait_for_colours(page)
        page.reload()
        wait_for_colours(page)
        expect(page.locator("#token")).to_have_value(TOKEN)
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        process.terminate()
        process.wait()
        page.get_by_role("button", name="Edit the question").click()
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("can't be reached")


def test_a_newer_generation_is_announced_and_a_link_keeps_its_generation(
    indexed: Config, open_page: Open, tmp_path: Path
) -> None:
    shutil.copytree(indexed.index, tmp_path / "index")
    store = Store(str(tmp_path / "index"))
    with serving(store.uri) as (address, _):
        page = open_page(address).page
        ask(page, "a red bird")
        expect(page.locator("#newer")).to_be_empty()
        link = page.url
        assert "generation=1" in link
        store.publish(replace(store.latest(), generation=2, created_at=now()))
        deadline = time.monotonic() + patience(60)
        while page.locator("#newer").inner_text() == "" and time.monotonic() < deadline:
            edit_and_ask(page)
        expect(page.locator("#newer")).to_contain_text("Answers now come from generation 2")
        colleague = open_page(link).page
        wait_for_colours(colleague)
        expect(colleague.locator("#newer")).to_contain_text("from generation 1; the newest is 2")
        colleague.get_by_role("button", name="Ask the newest").click()
        wait_for_colours(colleague)
        assert "generation=2" in colleague.url


def test_a_link_keeps_its_generation_while_it_waits_for_the_token(
    indexed: Config, open_page: Open, tmp_path: Path
) -> None:
    shutil.copytree(indexed.index, tmp_path / "index")
    store = Store(str(tmp_path / "index"))
    store.publish(replace(store.latest(), generation=2, created_at=now()))
    with serving(store.uri, LORIF_SERVE_TOKEN=TOKEN) as (address, _):
        page = open_page(f"{address}#answer=a+red+bird&generation=1").page
        for token in ("not this one", TOKEN):
            page.get_by_label("Server token").fill(token)
            page.get_by_role("button", name="Ask", exact=True).click()
            if token != TOKEN:
                expect(page.get_by_role("alert")).to_contain_text("token")
        wait_for_colours(page)
        assert "generation=1" in page.url
        edit_and_ask(page)
        assert "generation=2" in page.url


def edit_and_ask(page: Page) -> None:
    page.get_by_role("button", name="Edit the question").click()
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_colours(page)
