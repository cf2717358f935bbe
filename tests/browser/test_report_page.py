"""The report in a real browser: what it shows first, filters, keys, use without JavaScript, accessibility."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import ATTACK, Open, Watched

pytestmark = pytest.mark.browser

STATUS = ".filters [role=status]"


def shown(watched: Watched) -> list[str]:
    """Ids of the visible examples, by query and then by side."""
    return watched.page.locator(".hit:visible .id").all_inner_texts()


def everything(page: Page) -> list[str]:
    """Ids of all examples, also of those in folded lists."""
    return page.locator(".hit .id").all_text_contents()


def open_filter(page: Page) -> None:
    page.get_by_text("Find and filter the examples").click()


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (800, 900), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_screen_has_a_question_and_its_first_passage(
    report: str, open_page: Open, width: int, height: int, scheme: str
) -> None:
    watched = open_page(report, width=width, height=height, scheme=scheme)
    page = watched.page
    expect(page.locator("#query-1 .query-text")).to_be_in_viewport(ratio=1)
    expect(page.locator("#query-1-pro-1")).to_be_in_viewport(ratio=1 if width > 500 else 0.5)
    assert page.locator("#query-1-pro-1 .s").count() > 0, "its words are coloured"
    assert page.evaluate("document.documentElement.scrollWidth") == width
    watched.screenshot_window(f"report-{width}-{scheme}")
    assert watched.accessibility_violations() == [] and watched.console == []


def test_the_page_tells_first_things_first(report: str, open_page: Open) -> None:
    """One answered question, then all questions, then the other answers; the rest is folded."""
    page = open_page(report, width=1400).page
    order = page.locator("#query-1, .overview, #query-2, #query-3, .more").evaluate_all(
        "sections => sections.map(section => section.id || section.className)"
    )
    assert order == ["query-1", "overview", "query-2", "query-3", "more"]
    assert page.locator(".more details").count() >= 5 and page.locator(".more details[open]").count() == 0
    assert page.locator("#query-1 .pro .hit:visible").count() == 3
    page.locator("#query-1 .pro .rest > summary").click()
    assert page.locator("#query-1 .pro .hit:visible").count() == page.locator("#query-1 .pro .hit").count() > 3


def test_the_overview_leads_to_questions_and_passages(report: str, open_page: Open) -> None:
    watched = open_page(report, width=1400)
    page = watched.page
    rows = page.locator(".questions tbody tr")
    expect(rows).to_have_count(3)
    assert rows.nth(0).locator(".profile rect").count() == 10
    cells = rows.nth(1).locator(".map rect")
    assert cells.count() > 10 and page.locator(".hubs").count() == 1
    link = rows.nth(1).locator(".map a").last.get_attribute("href")
    assert link is not None
    rows.nth(1).locator(".map rect").last.click()
    expect(page.locator(link)).to_be_in_viewport()
    page.locator(".overview").scroll_into_view_if_needed()
    watched.screenshot_window("report-overview")
    rows.nth(2).get_by_role("link").first.press("Enter")
    expect(page.locator("#query-3 .query-text")).to_be_in_viewport()
    assert watched.console == []


def test_tabs_show_one_side_on_a_phone(report: str, open_page: Open) -> None:
    watched = open_page(report, width=390, height=844)
    page = watched.page
    query = page.locator("#query-1")
    expect(query.locator(".pro")).to_be_visible()
    expect(query.locator(".con")).to_be_hidden()
    query.get_by_role("tab", name="Less likely").click()
    expect(query.locator(".con .hit").first).to_be_visible()
    expect(query.locator(".pro")).to_be_hidden()
    page.keyboard.press("ArrowLeft")
    expect(query.get_by_role("tab", name="More likely")).to_be_focused()
    expect(query.locator(".pro .hit").first).to_be_visible()
    page.evaluate("location.hash = 'query-1-con-5'")
    expect(page.locator("#query-1-con-5")).to_be_in_viewport()
    assert watched.accessibility_violations() == [] and watched.console == []


def test_shared_words_are_underlined_on_demand(report: str, open_page: Open) -> None:
    page = open_page(report).page
    word = page.locator("#query-1 .w").first
    assert "underline" not in word.evaluate("word => getComputedStyle(word).textDecorationLine")
    page.locator("#query-1").get_by_label("Underline words").check()
    assert "underline" in word.evaluate("word => getComputedStyle(word).textDecorationLine")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_and_its_console_silent(report: str, open_page: Open, scheme: str) -> None:
    """Also with all details open, an active filter, and an example in focus."""
    watched = open_page(report, scheme=scheme)
    assert watched.accessibility_violations() == []
    watched.page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    watched.page.keyboard.press("j")
    watched.page.keyboard.press("/")
    watched.page.keyboard.type("cat")
    expect(watched.page.locator(STATUS)).to_contain_text("shown")
    assert watched.accessibility_violations() == []
    watched.page.locator(".query").first.scroll_into_view_if_needed()
    watched.screenshot_window(f"report-filtered-{scheme}")
    assert watched.console == [] and watched.requests == [report]
    assert watched.page.title() != "attacked" and watched.page.get_by_text(ATTACK).count() > 0


def test_filters_show_matching_examples(report: str, open_page: Open) -> None:
    watched = open_page(report)
    page = watched.page
    total = len(everything(page))
    open_filter(page)
    expect(page.locator(STATUS)).to_have_text(f"{total} examples, 3 queries.")
    texts = page.locator(".hit").evaluate_all(
        "hits => hits.map(hit => [hit.querySelector('.id').textContent, hit.querySelector('.text').textContent])"
    )
    page.locator("#filter-text").fill("BIRD")
    expect(page.locator(STATUS)).to_contain_text("shown")
    assert shown(watched) == [name for name, text in texts if "bird" in text] != []
    page.locator("#filter-side").select_option("con")
    assert page.locator(".pro:visible").count() == 0 and 0 < len(shown(watched)) < len(texts)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(STATUS)).to_have_text(f"{total} examples, 3 queries.")
    page.locator("#filter-file").select_option(label="animals.jsonl")
    assert {name[0] for name in shown(watched)} == {"a"}
    page.locator("#filter-file").select_option("")
    page.locator("#filter-share").fill("100")
    expect(page.locator(STATUS)).to_have_text(re.compile(rf"^\d+ of {total} examples shown, in 3 of 3 queries"))
    assert len(shown(watched)) < 12, "only the largest score of each query, and equal ones, remain"
    page.locator("#filter-text").fill("no text contains this")
    expect(page.locator(STATUS)).to_have_text(f"0 of {total} examples shown, in 0 of 3 queries.")
    assert page.locator("section.query:visible").count() == 0
    assert watched.console == []


def test_a_match_outside_the_excerpt_opens_the_full_text(report: str, open_page: Open) -> None:
    page = open_page(report).page
    open_filter(page)
    page.locator("#filter-text").fill("elephant")
    expect(page.locator(STATUS)).to_contain_text("shown")
    details = page.locator(".hit:visible .full").first
    expect(details).to_have_attribute("open", "")
    page.locator("#filter-text").fill("long row")
    expect(details).not_to_have_attribute("open", "")


def test_the_keyboard_suffices_to_find_and_open_examples(report: str, open_page: Open) -> None:
    watched = open_page(report)
    page, keys = watched.page, watched.page.keyboard
    keys.press("Tab")
    expect(page.get_by_text("Skip to the questions")).to_be_focused()
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
    page.evaluate("document.querySelectorAll('.rest').forEach(details => { details.open = true; })")
    page.locator(".hit:has(.full) .rank").first.focus()
    keys.press("o")
    expect(page.locator(".hit:focus-within .full")).to_have_attribute("open", "")
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
    page.locator(".find summary").focus()
    assert tokens.evaluate_all(shades) == before
    assert "consists of several queries" in page.locator("#query-3").inner_text()


def test_a_link_to_a_filtered_query_clears_the_filter(report: str, open_page: Open) -> None:
    page = open_page(f"{report}#query-2-pro-1").page
    expect(page.locator("#query-2-pro-1")).to_be_in_viewport()
    open_filter(page)
    page.locator("#filter-text").fill("no text contains this")
    expect(page.locator("#query-2")).to_be_hidden()
    page.evaluate("location.hash = 'query-2'")
    expect(page.locator("#query-2")).to_be_in_viewport()


def test_the_page_is_complete_without_javascript(report: str, open_page: Open) -> None:
    page = open_page(report, scripts=False).page
    expect(page.locator(".find")).to_be_hidden()
    for rest in page.locator(".rest > summary").all():
        rest.click()
    assert page.locator(".hit:visible").count() == page.locator(".hit").count() > 0
    details = page.locator(".hit .full").first
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
    expect(watched.page.locator(".find")).to_be_hidden()
    assert watched.page.locator("#query-1 .hit:visible").count() > 0
    watched.page.locator("#query-1").evaluate("query => query.scrollIntoView({behavior: 'instant'})")
    watched.screenshot_window("report-print")
