"""What leaves the explorer: its address, files, code that asks again, and the list of flagged examples."""

import json
import shlex
import subprocess
from pathlib import Path

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from lorif_core.config import Config
from lorif_core.lifecycle.removal import read_ids
from tests.browser.asking import ask, cards, type_question, wait_for_colours
from tests.browser.conftest import Open
from tests.integration.lorif import LORIF
from tests.patience import patience

pytestmark = pytest.mark.browser


def test_back_reload_and_links_show_the_same_answer(explorer: str, open_page: Open) -> None:
    watched = open_page(explorer)
    page = watched.page
    ask(page, "a red bird", "the cat sees ")
    first, first_cards = page.url, cards(page)
    page.get_by_role("button", name="Edit the question").click()
    ask(page, "an old tree")
    assert page.url != first
    requests = len(watched.requests)
    page.go_back()
    expect(page.locator(".completion")).to_have_text("a red bird")
    expect(page.locator(".query-text")).to_be_in_viewport()
    assert page.url == first and cards(page) == first_cards
    page.go_forward()
    expect(page.locator(".whole")).to_have_text("an old tree")
    assert len(watched.requests) == requests, "the answers must come from the page, not from the server"
    page.get_by_role("link", name="the cat sees → a red bird").click()
    expect(page.locator(".completion")).to_have_text("a red bird")
    page.reload()
    wait_for_colours(page)
    assert page.url == first and cards(page) == first_cards
    colleague = open_page(first)
    wait_for_colours(colleague.page)
    assert cards(colleague.page) == first_cards and "a red bird" in colleague.page.title()
    assert all("bird" not in url.partition("#")[0] for url in watched.requests), (
        "the server must not get the address"
    )
    page.get_by_role("button", name="New question").click()
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("section.query")).to_have_count(0)
    expect(page.locator("#start")).to_be_visible()
    page.go_back()
    expect(page.locator(".completion")).to_have_text("a red bird")
    assert watched.console == [] and watched.accessibility_violations() == []


def test_two_tabs_have_their_own_questions(explorer: str, open_page: Open) -> None:
    page = open_page(explorer).page
    other = page.context.new_page()
    other.goto(explorer)
    ask(page, "a red bird")
    ask(other, "an old tree")
    page.reload()
    wait_for_colours(page)
    expect(page.locator(".whole")).to_have_text("a red bird")
    expect(other.locator(".whole")).to_have_text("an old tree")


def test_a_link_within_the_answer_keeps_the_address(explorer: str, open_page: Open) -> None:
    page = open_page(explorer).page
    ask(page, "a red bird")
    address = page.url
    page.locator(".con .rank").first.click()
    expect(page.locator(".con .rank").first).to_be_focused()
    assert page.url == address


@pytest.mark.parametrize(
    "damage", ["#answer=%E0%A4%A&top_k=x", "#answer=a&span=9-1&generation=no", "#nonsense", "#=&="]
)
def test_a_damaged_link_is_no_error_of_the_page(explorer: str, open_page: Open, damage: str) -> None:
    watched = open_page(f"{explorer}{damage}")
    watched.page.wait_for_timeout(500)
    assert [text for text in watched.console if "422" not in text] == []
    expect(watched.page.locator("#generate")).to_be_attached()


def save(page: Page, name: str, folder: Path) -> Path:
    """Choose an entry of the menu Export by keys; returns the file that comes."""
    page.locator("#export summary").focus()
    page.keyboard.press("Enter")
    with page.expect_download() as download:
        while page.evaluate("document.activeElement.textContent") != name:
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_an_answer_is_exported_as_tables_and_as_a_report(explorer: str, open_page: Open, tmp_path: Path) -> None:
    watched = open_page(explorer)
    page = watched.page
    ask(page, "the small cat")
    shown = cards(page)
    for table in (
        pa_csv.read_csv(save(page, "Table as CSV", tmp_path)),
        pq.read_table(save(page, "Table as parquet", tmp_path)),
    ):
        assert table.column("example_id").to_pylist() == shown
        assert table.column_names[:4] == ["side", "rank", "example_id", "score"]
    report = open_page(save(page, "This answer as report.html", tmp_path).as_uri())
    assert cards(report.page) == shown and report.page.locator(".hit .s").count() > 0
    assert watched.console == report.console == []
    assert report.accessibility_violations() == [] and len(report.requests) == 1


def copied(page: Page, name: str) -> str:
    page.locator("#export summary").click()
    page.get_by_role("button", name=name).click()
    expect(page.locator("#copy-code")).to_be_focused()
    text = page.locator("#code-text").input_value()
    page.keyboard.press("Escape")
    return text


def test_code_that_is_copied_asks_the_same(indexed: Config, explorer: str, open_page: Open) -> None:
    """Also with quotes and hyphens; the name of the index stands for its path."""
    page = open_page(explorer).page
    page.get_by_role("button", name="Options and filters").click()
    page.locator("#where").fill("starts_with(text, 'a small')")
    page.locator("#top_k").fill("3")
    ask(page, '--it\'s"red"', "the bird ")
    shown = cards(page)
    curl = shlex.split(copied(page, "Copy as curl").replace("\\\n", " "))
    answer = json.loads(subprocess.run(curl, capture_output=True, check=True, timeout=patience(60)).stdout)
    assert [hit["example_id"] for side in ("proponents", "opponents") for hit in answer[side]] == shown
    command = shlex.split(copied(page, "Copy as command line"))
    assert command[:2] == ["lorif", "query"]
    line = [*LORIF, "query", indexed.index, *command[3:], "--json"]
    printed = subprocess.run(line, capture_output=True, text=True, check=True, timeout=patience(60)).stdout
    assert [hit["example_id"] for hit in json.loads(printed.splitlines()[-1])["proponents"]] == shown[:3]
    scope: dict[str, object] = {}
    source = copied(page, "Copy as Python")
    name = Path(indexed.index).name
    exec(source.replace(f'open_index("{name}")', f"open_index({indexed.index!r})"), scope)
    assert [hit.example_id for hit in scope["top"].proponents] == shown[:3]  # type: ignore[attr-defined]


def test_flagged_examples_become_an_ids_file(explorer: str, open_page: Open, tmp_path: Path) -> None:
    watched = open_page(explorer)
    page = watched.page
    ask(page, "the small cat")
    first, second = (
        page.locator(".pro .hit .id").first.inner_text(),
        page.locator(".con .hit .id").first.inner_text(),
    )
    page.get_by_role("button", name=f"Flag {first}", exact=True).click()
    page.get_by_role("button", name=f"Flag {second}", exact=True).press("Enter")
    page.reload()
    wait_for_colours(page)
    expect(page.get_by_role("button", name=f"Flag {second}", exact=True)).to_have_attribute("aria-pressed", "true")
    page.locator("#flags summary").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download ids").click()
    download.value.save_as(tmp_path / "ids.txt")
    assert read_ids(str(tmp_path / "ids.txt")) == [first, second]
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#flags")).to_be_hidden()
    assert watched.console == []


def test_a_question_by_keys_alone_is_linked_and_exported(explorer: str, open_page: Open) -> None:
    page = open_page(explorer).page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    type_question(page, "runs to the tree", "a small dog ")
    page.keyboard.press("ControlOrMeta+Enter")
    wait_for_colours(page)
    page.locator("#copy-link").press("Enter")
    expect(page.locator("#progress")).to_contain_text("clipboard")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
