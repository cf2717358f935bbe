"""Steps that tests of the explorer share."""

from playwright.sync_api import Page, expect

ANSWERED = "#answers[aria-busy=false] section.query"


def type_question(page: Page, answer: str, prompt: str = "") -> None:
    """Type a question by keys alone, from the top of the page; leaves the focus in the last field."""
    page.locator("#home").focus()
    for field, text in (("prompt", prompt), ("answer", answer)):
        while page.evaluate("document.activeElement.id") != field:
            page.keyboard.press("Tab")
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.press("Delete")
        page.keyboard.type(text)


def ask(page: Page, answer: str, prompt: str = "") -> None:
    """Fill the form, press Ask, and wait for the whole answer."""
    page.locator("#prompt").fill(prompt)
    page.locator("#answer").fill(answer)
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_colours(page)


def wait_for_colours(page: Page) -> None:
    """Wait until ranks and colours are there."""
    expect(page.locator("#progress")).to_contain_text("Answered in")
    expect(page.locator(ANSWERED)).to_be_visible()


def cards(page: Page) -> list[str]:
    """Ids of all examples on the page, also of folded ones."""
    return page.locator(".hit .id").all_text_contents()
