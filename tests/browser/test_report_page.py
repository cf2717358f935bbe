"""The report in a real browser: by filters, by keys alone, without a script; quiet, and open to everybody."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import ATTACK, Open, Watched

pytestmark = pytest.mark.browser

STATUS = ".filters [role=status]"


def shown(page: Watched) -> list[str]:
    """Ids of the examples that can be seen, side by side and query by query."""
    return page.page.locator(".hit:visible .id").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_quiet_and_accessible(report: str, opened: Open, scheme: str) -> None:
    """With all that folds unfolded, a filter on, and an example in focus."""
    watched = opened(report, scheme=scheme)
    assert watched.serious() == []
    watched.shoot(f"report-{scheme}")
    watched.page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    watched.page.keyboard.press("j")
    watched.page.locator("#filter-text").fill("cat")
    expect(watched.page.locator(STATUS)).to_contain_text("shown")
    assert watched.serious() == []
    watched.page.locator(".query").first.scroll_into_view_if_needed()
    watched.shoot(f"report-filtered-{scheme}")
    assert watched.said == [] and watched.asked == [report]
    assert watched.page.title() != "attacked" and watched.page.get_by_text(ATTACK).count() > 0


def test_filters_keep_what_they_say(report: str, opened: Open) -> None:
    watched = opened(report)
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
    assert len(shown(watched)) < 12, "of each query only the largest, and what equals it"
    page.locator("#filter-text").fill("nobody says this")
    expect(page.locator(STATUS)).to_have_text(f"0 of {len(everything)} examples shown, in 0 of 3 queries.")
    assert page.locator("section.query:visible").count() == 0
    assert watched.said == []


def test_a_match_in_the_folded_part_is_unfolded(report: str, opened: Open) -> None:
    page = opened(report).page
    page.locator("#filter-text").fill("elephant")
    details = page.locator(".hit:visible details").first
    expect(details).to_have_attribute("open", "")
    page.locator("#filter-text").fill("long row")
    expect(details).not_to_have_attribute("open", "")


def test_keys_alone_find_and_open(report: str, opened: Open) -> None:
    watched = opened(report)
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
    page.get_by_label("Letter keys are on").uncheck()
    page.locator("#query-1-pro-1 .rank").focus()
    keys.press("j")
    assert focused.get_attribute("href") == first, "letters that are off do nothing"
    assert watched.said == []


def test_an_example_in_focus_shades_the_query_by_its_own_score(report: str, opened: Open) -> None:
    page = opened(report).page
    query, hit = page.locator("#query-1"), page.locator("#query-1-con-1")
    shades = "tokens => tokens.map(token => token.className.at(-1)).join('')"
    tokens = query.locator(".ask .t")
    before = tokens.evaluate_all(shades)
    assert tokens.count() == len("the red bird") and query.locator(".completion").inner_text() == "the red bird"
    hit.locator(".rank").focus()
    assert tokens.evaluate_all(shades) == hit.get_attribute("data-levels") != before
    expect(query.locator(".shaded")).to_have_text(hit.locator(".id").inner_text())
    page.locator("#filter-text").focus()
    assert tokens.evaluate_all(shades) == before
    assert "consists of several queries" in page.locator("#query-3").inner_text()


def test_a_link_shows_what_the_filter_hides(report: str, opened: Open) -> None:
    page = opened(f"{report}#query-2-pro-1").page
    expect(page.locator("#query-2-pro-1")).to_be_in_viewport()
    page.locator("#filter-text").fill("nobody says this")
    expect(page.locator("#query-2")).to_be_hidden()
    page.evaluate("location.hash = 'query-2'")
    expect(page.locator("#query-2")).to_be_in_viewport()


def test_all_is_there_without_a_script(report: str, opened: Open) -> None:
    page = opened(report, scripts=False).page
    assert page.locator(".hit:visible").count() == page.locator(".hit").count() > 0
    expect(page.locator(".filters")).to_be_hidden()
    details = page.locator(".hit details").first
    details.locator("summary").click()
    expect(details.locator("> .text")).to_be_visible()


@pytest.mark.parametrize("width", [320, 1280])
def test_a_link_leads_to_the_top_of_its_query(report: str, opened: Open, width: int) -> None:
    """However long those before it are."""
    page = opened(report, width=width).page
    for place in (".page", "#query-1"):
        page.locator(place).evaluate("place => { place.style.paddingTop = '5000px' }")
    page.emulate_media(reduced_motion="no-preference")  # it scrolls by all that lies before
    page.evaluate("location.hash = 'query-2'")
    page.wait_for_timeout(2000)
    assert abs(page.evaluate("document.querySelector('#query-2').getBoundingClientRect().top")) < 150


@pytest.mark.parametrize("width", [320, 400])
def test_a_narrow_window_has_no_sideways_scroll(report: str, opened: Open, width: int) -> None:
    watched = opened(report, width=width)
    watched.page.locator("#query-1").evaluate("query => query.scrollIntoView({behavior: 'instant'})")
    watched.shoot(f"report-{width}")
    assert watched.page.evaluate("document.documentElement.scrollWidth") == width


def test_paper_has_the_answers_in_light_and_no_controls(report: str, opened: Open) -> None:
    watched = opened(report, width=794, scheme="dark")
    watched.page.emulate_media(media="print")
    assert watched.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 252, 250)"
    expect(watched.page.locator(".filters")).to_be_hidden()
    assert watched.page.locator("#query-1 .hit:visible").count() > 0
    watched.page.locator("#query-1").evaluate("query => query.scrollIntoView({behavior: 'instant'})")
    watched.shoot("report-print")
