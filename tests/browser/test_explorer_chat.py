"""The explorer of an index of conversations: its form takes turns, and links and copied code keep them."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from lorif_core.config import StorageConfig
from lorif_core.search.index import open_index
from lorif_core.search.queries import read_queries
from tests.browser.asking import cards, wait_for_colours
from tests.browser.conftest import Open
from tests.patience import patience

pytestmark = pytest.mark.browser

ASKED, ANSWER = "What does the bird do?", 'It sees a "tree".\nOften, it\'s said.'
SYSTEM = "Be brief."
MESSAGES = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}]
LONGER = [
    {"role": "system", "content": SYSTEM}, *MESSAGES,
    {"role": "user", "content": "And the dog?"}, {"role": "assistant", "content": "It runs."},
]  # fmt: skip


def expected(index: str, query: dict[str, Any]) -> list[str]:
    (top,) = open_index(index).top_k([query], 10)
    return [hit.example_id for hit in (*top.proponents, *top.opponents)]


def turn(page: Page, number: int) -> Any:
    """The field of a turn, from 1."""
    return page.locator("#turns textarea").nth(number - 1)


def ask_messages(page: Page, messages: list[dict[str, str]]) -> None:
    """Fill the form by mouse, and ask."""
    for number, message in enumerate(messages, start=1):
        if page.locator("#turns li").count() < number:
            page.get_by_role("button", name="Add a turn").click()
        page.get_by_label(f"Who speaks in turn {number}").select_option(message["role"])
        turn(page, number).fill(message["content"])
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_colours(page)


def tab_to(page: Page, condition: str) -> None:
    """Press Tab until the element in focus meets a condition in JavaScript."""
    for _ in range(60):
        if page.evaluate(f"(element => {condition})(document.activeElement)"):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"Tab reaches no element with {condition}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_conversation_is_typed_by_keys(
    chat_index: str, chat_explorer: str, open_page: Open, scheme: str
) -> None:
    """Turns are added and removed; hits equal the library's, and question and passages are shown as turns."""
    watched = open_page(chat_explorer, scheme=scheme)
    page, keys = watched.page, watched.page.keyboard
    expect(page.locator("#start button")).to_have_count(3)
    expect(turn(page, 1)).to_be_focused()
    keys.type(ASKED)
    tab_to(page, "element === document.querySelectorAll('#turns textarea')[1]")
    keys.type(ANSWER)
    tab_to(page, "element.id === 'add-turn'")
    keys.press("Enter")
    expect(page.get_by_label("What the user says in turn 3")).to_be_focused()
    keys.type("And the dog?")
    tab_to(page, "element.id === 'add-turn'")
    keys.press("Enter")
    expect(page.get_by_label("What the assistant says in turn 4")).to_be_focused()
    keys.type("It runs.")
    tab_to(page, "element.id === 'add-system'")
    keys.press("Space")
    expect(page.get_by_label("What the system says in turn 1")).to_be_focused()
    expect(page.locator("#add-system")).to_be_hidden()
    keys.type(SYSTEM)
    watched.screenshot_window(f"explorer-chat-form-{scheme}")
    assert watched.accessibility_violations() == []
    keys.press("ControlOrMeta+Enter")
    wait_for_colours(page)
    assert cards(page) == expected(chat_index, {"messages": LONGER})
    assert page.locator(".query-text .role").all_inner_texts() == [message["role"] for message in LONGER]
    assert page.locator(".query-text .turn-assistant .t").count() > 0 and page.locator(".hit .s").count() > 0
    expect(page.locator("#edit .line")).to_have_text("And the dog? → It runs.")
    watched.screenshot_window(f"explorer-chat-{scheme}")
    page.get_by_role("button", name="Edit the question").press("Enter")
    expect(turn(page, 5)).to_be_focused()
    for number in (5, 4):
        page.get_by_role("button", name=f"Remove turn {number}").press("Enter")
        expect(turn(page, number - 1)).to_be_focused()
    keys.press("ControlOrMeta+Enter")
    wait_for_colours(page)
    assert cards(page) == expected(chat_index, {"messages": LONGER[:3]})
    assert watched.console == [] and watched.accessibility_violations() == []


@pytest.mark.parametrize("width", [1400, 800, 390])
def test_the_form_fits_and_a_link_has_the_turns(
    chat_index: str, chat_explorer: str, open_page: Open, width: int
) -> None:
    watched = open_page(chat_explorer, width=width, height=844)
    page = watched.page
    page.get_by_role("button", name="Add a system turn").click()
    ask_messages(page, LONGER)
    address, shown = page.url, cards(page)
    assert shown == expected(chat_index, {"messages": LONGER})
    page.get_by_role("button", name="Edit the question").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    watched.screenshot_window(f"explorer-chat-form-{width}")
    assert watched.accessibility_violations() == []
    page.get_by_role("button", name="New question").click()
    expect(turn(page, 1)).to_have_value("")
    expect(page.locator("#turns li")).to_have_count(2)
    page.go_back()
    expect(page.locator(".query-text")).to_contain_text("And the dog?")
    colleague = open_page(address).page
    wait_for_colours(colleague)
    assert cards(colleague) == shown and colleague.url == address
    colleague.get_by_role("button", name="Edit the question").click()
    fields = colleague.locator("#turns textarea")
    values = fields.evaluate_all("fields => fields.map(field => field.value)")
    assert values == [message["content"] for message in LONGER]
    assert watched.console == []


def copied(page: Page, name: str) -> str:
    page.locator("#export summary").click()
    page.get_by_role("button", name=name).click()
    text = page.locator("#code-text").input_value()
    page.keyboard.press("Escape")
    return text


def test_code_that_is_copied_has_the_conversation(
    chat_index: str, chat_explorer: str, open_page: Open, tmp_path: Path
) -> None:
    """Also with quotes and line breaks, for shells whose echo reads backslashes."""
    page = open_page(chat_explorer).page
    ask_messages(page, MESSAGES)
    shown = cards(page)
    curl = shlex.split(copied(page, "Copy as curl").replace("\\\n", " "))
    answer = json.loads(subprocess.run(curl, capture_output=True, check=True, timeout=patience(60)).stdout)
    assert [hit["example_id"] for side in ("proponents", "opponents") for hit in answer[side]] == shown
    scope: dict[str, Any] = {}
    source = copied(page, "Copy as Python")
    exec(source.replace(f'open_index("{Path(chat_index).name}")', f"open_index({chat_index!r})"), scope)
    assert [hit.example_id for hit in scope["top"].proponents] == shown[: len(shown) // 2]
    write, command = copied(page, "Copy as command line").splitlines()
    subprocess.run(["sh", "-c", write], cwd=tmp_path, check=True)
    (query,) = read_queries(str(tmp_path / "queries.jsonl"), StorageConfig())
    assert list(query.messages or ()) == MESSAGES
    assert command.startswith("lorif attribute -c config.yaml --queries queries.jsonl")


def test_the_model_answers_a_conversation(chat_explorer: str, open_page: Open) -> None:
    watched = open_page(chat_explorer)
    page = watched.page
    page.get_by_role("button", name="Let the model answer").click()
    expect(page.get_by_role("alert")).to_contain_text("prompt first")
    expect(turn(page, 1)).to_be_focused()
    page.keyboard.type(ASKED)
    page.get_by_role("button", name="Remove turn 2").click()
    page.get_by_role("button", name="Let the model answer").press("Enter")
    expect(page.locator("#progress")).to_contain_text("This is what the model says")
    expect(page.get_by_label("What the assistant says in turn 2")).not_to_have_value("")
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_colours(page)
    assert "rarely" not in (said := page.locator(".likelihood").inner_text()) and "hardly" not in said
    assert watched.console == []


def test_two_answers_to_a_conversation_are_compared(chat_index: str, chat_explorer: str, open_page: Open) -> None:
    watched = open_page(chat_explorer)
    page = watched.page
    page.get_by_role("button", name="Compare two answers").click()
    page.locator("#other").fill("It sleeps.")
    ask_messages(page, MESSAGES)
    other = [MESSAGES[0], {"role": "assistant", "content": "It sleeps."}]
    assert cards(page) == expected(chat_index, {"contrast": [{"messages": MESSAGES}, {"messages": other}]})
    assert page.locator(".hit .s").count() > 0 and watched.console == []


def test_plain_text_is_asked_about_too_and_an_example_begins(
    chat_index: str, chat_explorer: str, open_page: Open
) -> None:
    watched = open_page(chat_explorer)
    page = watched.page
    page.locator("#start button").first.click()
    wait_for_colours(page)
    assert "assistant" in page.locator(".query-text .role").all_inner_texts()
    assert "<|im_start|>" not in page.locator(".query-text").inner_text()
    page.get_by_role("button", name="Edit the question").click()
    page.get_by_label("A plain text").check()
    expect(page.locator("#conversation")).to_be_hidden()
    page.locator("#answer").fill("the bird sees it")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".whole")).to_have_text("the bird sees it")
    wait_for_colours(page)
    assert cards(page) == expected(chat_index, {"text": "the bird sees it"})
    page.get_by_role("button", name="Edit the question").click()
    page.get_by_label("A conversation").check()
    for number in range(1, page.locator("#turns li").count() + 1):
        page.get_by_label(f"Who speaks in turn {number}").select_option("user")
    page.get_by_role("button", name="Ask", exact=True).click()
    assert page.locator("#turns select:invalid").count() > 0, "without an assistant nothing is asked"
    expect(page.locator(".whole")).to_have_text("the bird sees it")
    assert watched.console == []


def test_the_whole_record_shows_turns_and_columns_and_is_asked_about(
    chat_index: str, chat_explorer: str, open_page: Open
) -> None:
    watched = open_page(chat_explorer)
    page = watched.page
    ask_messages(page, MESSAGES)
    first = cards(page)[0]
    page.get_by_role("button", name=f"Whole record of {first}", exact=True).click()
    panel = page.get_by_role("dialog")
    expect(panel.locator("dl")).to_contain_text(f"animals of {first}")
    assert panel.locator(".role").all_inner_texts()[-2:] == ["user", "assistant"]
    assert "<|im_start|>" not in panel.inner_text()
    said = panel.locator(".said").all_inner_texts()
    watched.screenshot_window("explorer-chat-panel")
    assert watched.accessibility_violations() == []
    panel.get_by_role("button", name="Ask about this passage").press("Enter")
    expect(page.locator("#edit .line")).to_have_text(f"{said[-2]} → {said[-1]}")
    wait_for_colours(page)
    assert watched.console == []
