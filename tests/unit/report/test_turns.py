"""Invariant: conversations are drawn turn by turn, with all their words and all shades of their tokens."""

import re

import numpy as np
import pytest

from lorif_core.corpus.chat_template import ChatTemplate
from lorif_core.corpus.turns import Turn, spoken_line, turns_from_json, turns_to_json
from lorif_core.report.answer import answer_section
from lorif_core.report.drawing import QueryTokens
from lorif_core.report.page import render_answer
from lorif_core.report.turns import example_excerpt, shaded_turns, turns_in
from lorif_core.search.contributions import token_texts
from lorif_core.search.explanation import Explanation
from lorif_core.search.queries import Query, query_example
from lorif_core.search.top_k import Scored, TopK
from lorif_core.tables.checksums import TURNS
from tests.chat_templates import CASES, TALK, Case, with_template
from tests.tiny_tokenizer import byte_tokenizer

TEXT = "<s>system\nBe <b>brief</b>.</s><s>user\nSay it.</s><s>assistant\nIt is said.</s>"
TURNS_OF_TEXT = tuple(
    Turn(role, TEXT.index(said), TEXT.index(said) + len(said))
    for role, said in [("system", "Be <b>brief</b>."), ("user", "Say it."), ("assistant", "It is said.")]
)
TOP = TopK(1, [Scored(2.0, "a")], [])


def row(text: str, turns: tuple[Turn, ...]) -> dict[str, dict[str, object]]:
    return {"a": {"example_id": "a", "uri": "f", "row": 0, "text": text, TURNS: turns_to_json(turns)}}


def drawn(html: str) -> list[tuple[str, str]]:
    found = re.findall(
        r'<span class="role">(.*?)</span> <span class="said" dir="auto">(.*?)</span></span>', html, re.S
    )
    return [(role, re.sub(r"</?(mark|span).*?>", "", said)) for role, said in found]


def test_an_example_is_drawn_turn_by_turn() -> None:
    section = answer_section(Query("q", text="what is said"), 1.0, TOP, row(TEXT, TURNS_OF_TEXT))
    html = render_answer(section, relative=False)
    assert drawn(html) == [
        ("system", "Be &lt;b&gt;brief&lt;/b&gt;."), ("user", "Say it."), ("assistant", "It is said."),
    ]  # fmt: skip
    assert 'class="w"' in html and "&lt;s&gt;" not in html and "turn-assistant" in html
    assert turns_from_json(turns_to_json(TURNS_OF_TEXT)) == TURNS_OF_TEXT and turns_to_json(()) is None
    assert spoken_line(TEXT, TURNS_OF_TEXT) == "system: Be <b>brief</b>. user: Say it. assistant: It is said."
    assert spoken_line("a\nb", ()) == "a b"


def test_a_long_example_is_first_shown_from_its_first_question() -> None:
    system, question, answer = "rule " * 200, "Why? " * 10, "because " * 200
    text = f"<s>{system}</s><s>{question}</s><s>{answer}</s>"
    turns = tuple(
        Turn(role, text.index(said), text.index(said) + len(said))
        for role, said in [("system", system), ("user", question), ("assistant", answer)]
    )
    section = answer_section(Query("q", text="something else"), 1.0, TOP, row(text, turns))
    (hit,) = section.proponents
    part = example_excerpt(hit)
    assert part is not None and part[0] == turns[1].start and 300 < part[1] - part[0] <= 360
    assert [turn.role for turn in turns_in(turns, part)] == ["user", "assistant"]
    html = render_answer(section, relative=False)
    assert [role for role, _ in drawn(html)] == ["user", "assistant", "system", "user", "assistant"]
    plain = answer_section(Query("q", text="x"), 1.0, TOP, row(text, ())).proponents[0]
    assert (example_excerpt(plain) or (1,))[0] == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_query_is_drawn_turn_by_turn_with_every_shade(case: Case) -> None:
    """The page addresses shades by their number, so hidden markup keeps its own."""
    tokenizer = with_template(byte_tokenizer(), case, case.template)
    tools = None if case.tools is None else tuple(case.tools)
    query = Query("q", messages=tuple(case.messages), tools=tools)
    example = query_example(query, tokenizer, 1000, 4096, ChatTemplate(case.template, None, {
        name: token for name, token in (("bos_token", case.bos), ("eos_token", case.eos)) if token
    }))  # fmt: skip
    texts = tuple(token_texts(example.input_ids.tolist(), tokenizer))
    contributions = np.where(example.labels != -100, 1.0, 0.0).astype(np.float32)
    explanation = Explanation(texts, {"a": contributions})
    section = answer_section(query, 1.0, TOP, row(TEXT, TURNS_OF_TEXT), explanation)
    tokens = QueryTokens(section)
    turns = shaded_turns(section, tokens)
    scored = [shade for shade in [*tokens.prompt, *tokens.answer] if shade.level is not None]
    assert turns is not None
    assert [shade for turn in turns for shade in turn.shades if shade.level is not None] == scored
    assert "".join(shade.space + shade.text for turn in turns for shade in turn.shades) == case.text
    said = [(turn.role, "".join(shade.space + shade.text for shade in turn.shades)) for turn in turns if turn.role]
    assert [role for role, _ in said] == [message["role"] for message in case.messages]
    for (_, text), message in zip(said, case.messages, strict=True):
        assert text == message["content"] if "content" in message else '"name": "weather"' in text
    html = render_answer(section, relative=False)
    heading = html[html.index("<h2") : html.index("</h2>")]
    assert heading.count('class="t t') == len(scored)
    assert "on what the assistant says" in html


def test_a_query_without_explanation_is_drawn_turn_by_turn() -> None:
    section = answer_section(Query("q", messages=tuple(TALK)), 1.0, TOP, row(TEXT, TURNS_OF_TEXT))
    html = render_answer(section, relative=False)
    heading = html[html.index("<h2") : html.index("</h2>")]
    assert drawn(heading) == [(message["role"], message["content"]) for message in TALK]
