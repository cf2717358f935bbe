"""What the explorer asks beyond a whole answer: its parts, two answers, the model's own, and single passages."""

import pytest
from playwright.sync_api import Page, expect

from lorif_core.config import Config
from lorif_core.search.index import open_index
from tests.browser.asking import ask, cards, type_question, wait_for_colours
from tests.browser.conftest import Open

pytestmark = pytest.mark.browser

PROMPT, ANSWER = "the dog ", "runs to a tree"
PART = {"start": 5, "end": 9}  # "to a"


def expected(indexed: Config, query: dict[str, object]) -> list[str]:
    (top,) = open_index(indexed.index).top_k([query], 10)
    return [hit.example_id for hit in (*top.proponents, *top.opponents)]


def check_part(page: Page, indexed: Config) -> None:
    wait_for_colours(page)
    assert cards(page) == expected(indexed, {"prompt": PROMPT, "completion": ANSWER, "span": PART})
    assert page.locator(".completion .t").count() == len("to a") and "span=5-9" in page.url
    expect(page.locator("#folded .chip")).to_contain_text("only “to a”")


def test_a_part_is_asked_about_by_keys(indexed: Config, explorer: str, open_page: Open) -> None:
    watched = open_page(explorer)
    page, keys = watched.page, watched.page.keyboard
    type_question(page, ANSWER, PROMPT)
    for _ in range(len(ANSWER) - PART["end"]):
        keys.press("ArrowLeft")
    for _ in range(PART["end"] - PART["start"]):
        keys.press("Shift+ArrowLeft")
    keys.press("Tab")
    keys.press("Tab")
    expect(page.get_by_role("button", name="Ask about the selected part")).to_be_focused()
    keys.press("Enter")
    check_part(page, indexed)
    page.locator("#folded .chip button").press("Enter")
    wait_for_colours(page)
    assert cards(page) == expected(indexed, {"prompt": PROMPT, "completion": ANSWER})
    assert watched.console == [] and watched.accessibility_violations() == []


@pytest.mark.parametrize(("width", "before"), [(1400, ""), (800, ""), (390, ""), (1400, " "), (1400, "<s> ")])
def test_a_part_is_asked_about_by_dragging_over_the_answer(
    indexed: Config, explorer: str, open_page: Open, width: int, before: str
) -> None:
    """Other tokenizers than that of this model make the page show a space or a special token before the answer."""
    watched = open_page(explorer, width=width)
    page = watched.page
    ask(page, ANSWER, PROMPT)
    page.evaluate("before => document.querySelector('.completion').prepend(before)", before)
    tokens = page.locator(".completion .t")
    first, last = tokens.nth(PART["start"]).bounding_box(), tokens.nth(PART["end"] - 1).bounding_box()
    assert first and last
    page.mouse.move(first["x"] + 0.5, first["y"] + first["height"] / 2)
    page.mouse.down()
    page.mouse.move(last["x"] + last["width"] - 0.5, last["y"] + last["height"] / 2, steps=4)
    page.mouse.up()
    button = page.get_by_role("button", name="Ask about this part only")
    expect(button).to_be_in_viewport(ratio=1)
    button.click()
    check_part(page, indexed)
    expect(button).to_be_hidden()
    page.reload()
    check_part(page, indexed)
    assert watched.console == []


def test_a_part_of_the_answer_is_left_when_two_answers_are_compared(
    indexed: Config, explorer: str, open_page: Open
) -> None:
    page = open_page(f"{explorer}#prompt=the+dog+&answer=runs+to+a+tree&span=5-9").page
    check_part(page, indexed)
    page.get_by_role("button", name="Edit the question").click()
    page.get_by_role("button", name="Compare two answers").click()
    page.keyboard.type("sees a bird")
    expect(page.locator(".chip")).to_have_count(0)
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_colours(page)
    assert "span" not in page.url


def test_what_the_model_says_does_not_come_into_another_question(explorer: str, open_page: Open) -> None:
    page = open_page(explorer).page
    ask(page, "a red bird")
    other = page.url
    page.get_by_role("button", name="New question").click()
    page.evaluate("""() => {
        const request = lorif.request;
        const waits = ({ signal }) => new Promise((_, reject) => {
            signal.addEventListener("abort", () => reject(signal.reason));
        });
        lorif.request = (path, options) => (path === "generations" ? waits(options) : request(path, options));
    }""")
    page.locator("#prompt").fill("the cat")
    page.get_by_role("button", name="Let the model answer").click()
    assert page.evaluate("lorif.isGenerating()")
    page.evaluate("hash => { location.hash = hash; }", other.partition("#")[2])
    expect(page.locator("#answer")).to_have_value("a red bird")
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    assert not page.evaluate("lorif.isGenerating()")


def test_two_answers_are_compared(indexed: Config, explorer: str, open_page: Open) -> None:
    watched = open_page(explorer)
    page = watched.page
    page.get_by_role("button", name="Compare two answers").press("Enter")
    expect(page.locator("#other")).to_be_focused()
    page.keyboard.type("sees a bird")
    ask(page, ANSWER, PROMPT)
    sides = [{"prompt": PROMPT, "completion": text} for text in (ANSWER, "sees a bird")]
    assert cards(page) == expected(indexed, {"contrast": sides})
    assert page.locator(".hit .s").count() > 0
    assert page.locator(".contrast .t").count() == len(ANSWER + "sees a bird"), "both answers are coloured"
    expect(page.locator(".contrast")).to_have_text(f"{PROMPT}{ANSWER} minus {PROMPT}sees a bird")
    expect(page.locator(".legend")).to_contain_text("speak for the first answer")
    hit = page.locator(".pro .hit").first
    hit.locator(".s").first.click()
    expect(hit.locator(".pair")).to_contain_text("speaks to")
    page.reload()
    wait_for_colours(page)
    expect(page.locator(".query-text")).to_contain_text("sees a bird")
    assert watched.accessibility_violations() == [] and watched.console == []


def test_the_model_answers_and_its_answer_is_edited_and_asked(explorer: str, open_page: Open) -> None:
    watched = open_page(explorer)
    page = watched.page
    page.get_by_role("button", name="Let the model answer").click()
    expect(page.get_by_role("alert")).to_contain_text("prompt first")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("the cat")
    page.get_by_role("button", name="Let the model answer").press("Enter")
    expect(page.locator("#progress")).to_contain_text("This is what the model says")
    own = page.locator("#answer").input_value()
    assert own != ""
    expect(page.get_by_role("button", name="Let the model answer")).to_be_visible()
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_colours(page)
    expect(page.locator(".likelihood")).to_contain_text("the model")
    page.get_by_role("button", name="Edit the question").click()
    page.locator("#answer").fill("elephant zebra xylophone")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".completion")).to_have_text("elephant zebra xylophone")
    wait_for_colours(page)
    page.get_by_text("How likely is each token?").click()
    expect(page.locator(".losses .l").first).to_be_visible()
    assert watched.accessibility_violations() == [] and watched.console == []


@pytest.mark.parametrize("width", [1400, 390])
def test_a_span_of_a_passage_shows_which_words_it_speaks_to(explorer: str, open_page: Open, width: int) -> None:
    """By mouse, by keys, and undone by Esc."""
    watched = open_page(explorer, width=width)
    page, keys = watched.page, watched.page.keyboard
    ask(page, ANSWER, PROMPT)
    shades = "tokens => tokens.map(token => token.className.at(-1)).join('')"
    tokens = page.locator(".query-text .t")
    before = tokens.evaluate_all(shades)
    hit = page.locator(".pro .hit").first
    span = hit.locator(".s").first
    span.click()
    expect(hit.locator(".pair")).to_contain_text("speaks to")
    expect(page.locator(".shaded")).to_contain_text(span.inner_text())
    by_mouse = tokens.evaluate_all(shades)
    assert by_mouse != before
    keys.press("Escape")
    expect(page.locator(".pair")).to_have_count(0)
    assert tokens.evaluate_all(shades) == before
    hit.locator(".rank").focus()
    while not page.evaluate("document.activeElement.matches('.s')"):
        keys.press("Tab")
    keys.press("Enter")
    expect(hit.locator(".pair")).to_contain_text("speaks to")
    assert tokens.evaluate_all(shades) == by_mouse
    keys.press("ArrowRight")
    keys.press("Space")
    expect(hit.locator(".s[aria-pressed=true]")).to_be_focused()
    expect(hit.locator(".pair")).to_contain_text("speaks to")
    watched.screenshot_window(f"explorer-pair-{width}")
    assert watched.accessibility_violations() == [] and watched.console == []


def test_the_whole_record_has_neighbours_and_can_be_asked_about(explorer: str, open_page: Open) -> None:
    watched = open_page(explorer)
    page, keys = watched.page, watched.page.keyboard
    ask(page, "an old tree")
    first = cards(page)[0]
    page.get_by_role("button", name=f"Whole record of {first}", exact=True).press("Enter")
    panel = page.get_by_role("dialog")
    expect(panel.get_by_role("heading", name=first)).to_be_focused()
    expect(panel.locator(".neighbour").first).to_be_visible()
    assert 2 <= panel.locator(".neighbour").count() <= 4
    watched.screenshot_window("explorer-panel")
    assert watched.accessibility_violations() == []
    panel.locator(".neighbour button").first.press("Enter")
    expect(panel.get_by_role("heading", name=first, exact=True)).to_have_count(0)
    keys.press("Escape")
    expect(panel).to_be_hidden()
    page.get_by_role("button", name=f"Whole record of {first}", exact=True).click()
    text = panel.locator(".text").first.inner_text()
    panel.get_by_role("button", name="Ask about this passage").click()
    wait_for_colours(page)
    expect(page.locator(".whole")).to_have_text(text)
    assert watched.console == []
