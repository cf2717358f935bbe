"""The report in a real browser: filters, keyboard use, use without JavaScript, accessibility, a silent console."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import ATTACK, Open, Watched

pytestmark = pytest.mark.browser

STATUS = ".filters [role=status]"


def shown(watched: Watched) -> list[str]:
    """Ids of the visible examples, by query and then by side."""
    return watched.page.locator(".hit:visible .id").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_and_its_console_silent(report: str, open_page: Open, scheme: str) -> None:
    """Also with all details open, an active filter, and an example in focus."""
    watched = open_page(report, scheme=scheme)
    assert watched.accessibility_violations() == []
    watched.screenshot_window(f"report-{scheme}")
    watched.page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    watched.page.keyboard.press("j")
    watched.page.locator("#filter-text").fill("cat")
    expect(watched.page.locator(STATUS)).to_contain_text("shown")
    assert watched.accessibility_violations() == []
    watched.page.locator(".query").first.scroll_into_view_if_needed()
    watched.screenshot_window(f"report-filtered-{scheme}")
    assert watched.console == [] and watched.requests == [report]
    assert watched.page.title() != "attacked" and watched.page.get_by_text(ATTACK).count() > 0


def test_filters_show_matching_examples(report: str, open_page: Open) -> None:
    watched = open_page(report)
    page = watched.page
    everything = shown(watched)
    expect(page.locator(STATUS)).to_have_text(f"{len(everything)} examples, 3 queries.")
    texts = page.locator(".hit").evaluate_all(
        "hits => hits.map(hit => [hit.querySelector('.id').textContent, hit.querySelector('.text').textContent])"
    )
    page.locator("#filter-text").fill("BIRD")
    expect(page.locator(STATUS)).to_contain_text("shown")
    assert shown(watched) == [name for name, text in texts if "bird" in text] != []
    page.locator("#filter-side").select_option("con")
    assert page.locator(".pro:visible").count() == 0 and 0 < len(shown(watched)) < len(texts)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(STATUS)).to_have_text(f"{len(everything)} examples, 3 queries.")
    page.locator("#filter-file").select_option(label="animals.jsonl")
    assert {name[0] for name in shown(watched)} == {"a"}
    page.locator("#filter-file").select_option("")
    page.locator("#filter-share").fill("100")
    expect(page.locator(STATUS)).to_have_text(
        re.compile(rf"^\d+ of {len(everything)} examples shown, in 3 of 3 queries")
    )
    assert len(shown(watched)) < 12, "only the largest score of each query, and equal ones, remain"
    page.locator("#filter-text").fill("no text contains this")
    expect(page.locator(STATUS)).to_have_text(f"0 of {len(everything)} examples shown, in 0 of 3 queries.")
    assert page.locator("section.query:visible").count() == 0
    assert watched.console == []


def test_a_match_outside_the_excerpt_opens_the_full_text(report: str, open_page: Open) -> None:
    page = open_page(report).page
    page.locator("#filter-text").fill("elephant")
    details = page.locator(".hit:visible details").first
    expect(details).to_have_attribute("open", "")
    page.locator("#filter-text").fill("long row")
    expect(details).not_to_have_attribute("open", "")


def test_the_keyboard_suffices_to_find_and_open_examples(report: str, open_page: Open) -> None:
    watched = open_page(report)
    page, keys = watched.page, watched.page.keyboard
    keys.press("Tab")
    expect(page.get_by_text("Skip to the queries")).to_be_focused()
    keys.press("/")
    keys.type("elephant")
    expect(page.locator(STATUS)).to_contain_text("shown")
    keys.press("Escape")
    expect(page.locator("#filter-text")).to_have_value("")
    page.locator("#query-1 a").first.focus()
    keys.press("j")
    focused = page.locator(":focus")
    first = focused.get_attribute("href")
    keys.press("j")
    assert focused.get_attribute("href") == "#query-1-pro-2" and first == "#query-1-pro-1"
    keys.press("k")
    assert focused.get_attribute("href") == first
    page.locator("[data-file$='others.jsonl']:has(details) .rank").first.focus()
    keys.press("o")
    expect(page.locator(".hit:focus-within details")).to_have_attribute("open", "")
    page.locator(".keys summary").click()
    page.get_by_label("Use letter keys").uncheck()
    page.locator("#query-1-pro-1 .rank").focus()
    keys.press("j")
    assert focused.get_attribute("href") == first, "disabled letter keys must do nothing"
    assert watched.console == []


def test_an_example_in_focus_shades_the_query_by_its_contributions(report: str, open_page: Open) -> None:
    page = open_page(report).page
    query, hit = page.locator("#query-1"), page.locator("#query-1-con-1")
    shades = "tokens => tokens.map(token => token.className.at(-1)).join('')"
    tokens = query.locator(".query-text .t")
    before = tokens.evaluate_all(shades)
    assert tokens.count() == len("the red bird") and query.locator(".completion").inner_text() == "the red bird"
    hit.locator(".rank").focus()
    assert tokens.evaluate_all(shades) == hit.get_attribute("data-levels") != before
    expect(query.locator(".shaded")).to_have_text(hit.locator(".id").inner_text())
    page.locator("#filter-text").focus()
    assert tokens.evaluate_all(shades) == before
    assert "consists of several queries" in page.locator("#query-3").inner_text()


def test_a_link_to_a_filtered_query_clears_the_filter(report: str, open_page: Open) -> None:
    page = open_page(f"{report}#query-2-pro-1").page
    expect(page.locator("#query-2-pro-1")).to_be_in_viewport()
    page.locator("#filter-text").fill("no text contains this")
    expect(page.locator("#query-2")).to_be_hidden()
    page.evaluate("location.hash = 'query-2'")
    expect(page.locator("#query-2")).to_be_in_viewport()


def test_the_page_is_complete_without_javascript(report: str, open_page: Open) -> None:
    page = open_page(report, scripts=False).page
    assert page.locator(".hit:visible").count() == page.locator(".hit").count() > 0
    expect(page.locator(".filters")).to_be_hidden()
    details = page.locator(".hit details").first
    details.locator("summary").click()
    expect(details.locator("> .text")).to_be_visible()


@pytest.mark.parametrize("width", [320, 1280])
def test_a_link_scrolls_to_the_top_of_its_query(report: str, open_page: Open, width: int) -> None:
    """Even if the content before it is long."""
    page = open_page(report, width=width).page
    for selector in (".page", "#query-1"):
        page.locator(selector).evaluate("element => { element.style.paddingTop = '5000px' }")
    page.emulate_media(reduced_motion="no-preference")  # so that the page scrolls smoothly
    page.evaluate("location.hash = 'query-2'")
    page.wait_for_timeout(2000)
    assert abs(page.evaluate("document.querySelector('#query-2').getBoundingClientRect().top")) < 150


@pytest.mark.parametrize("width", [320, 400])
def test_a_narrow_window_does_not_scroll_sideways(report: str, open_page: Open, width: int) -> None:
    watched = open_page(report, width=width)
    watched.page.locator("#query-1").evaluate("query => query.scrollIntoView({behavior: 'instant'})")
    watched.screenshot_window(f"report-{width}")
    assert watched.page.evaluate("document.documentElement.scrollWidth") == width


def test_a_printed_page_is_light_and_has_no_controls(report: str, open_page: Open) -> None:
    watched = open_page(report, width=794, scheme="dark")
    watched.page.emulate_media(media="print")
    assert watched.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 252, 250)"
    expect(watched.page.locator(".filters")).to_be_hidden()
    assert watched.page.locator("#query-1 .hit:visible").count() > 0
    watched.page.locator("#query-1").evaluate("query => query.scrollIntoView({behavior: 'instant'})")
    watched.screenshot_window("report-print")
