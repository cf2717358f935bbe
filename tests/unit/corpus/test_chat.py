"""Invariant: what the assistant says is scored, token by token, and nothing else; a doubtful part is refused.

If this breaks, gradients are those of the user's words, or of a text that no training had.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from lorif_core.config import CorpusConfig
from lorif_core.corpus.tokenise import Example, make_examples
from lorif_core.errors import UserError
from tests.chat_templates import CALLS, CASES, CHATML, LLAMA3, QWEN, TALK, WEATHER, Case, with_template
from tests.tiny_tokenizer import byte_tokenizer
from tests.tokenizer_kinds import gemma, gpt2, llama2, llama2_legacy, llama3, qwen2, words_with_spaces_behind

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_rule = pytest.mark.parametrize("marked", [True, False], ids=["marks", "prefixes"])


def made(record: dict[str, Any], tokenizer: Any, **corpus: Any) -> Example:
    keys = {"messages": "m", "max_length": 4096, **corpus}
    (example,) = make_examples(7, record, "a.jsonl", tokenizer, CorpusConfig(uri="x", **keys), 100_000)
    return example


def tokenizer_of(case: Case, *, marked: bool, kind: Callable[[], Any] = byte_tokenizer) -> Any:
    return with_template(kind(), case, case.template if marked else case.unmarked)


def record_of(case: Case) -> dict[str, Any]:
    return {"m": case.messages, "tools": case.tools}


def labels_by_hand(tokenizer: Any, parts: list[tuple[str, bool]]) -> tuple[list[int], list[int]]:
    """Ids and labels of a tokenizer whose tokens never cross the edges of the parts."""
    ids, labels = [], []
    for text, is_scored in parts:
        part = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += part
        labels += part if is_scored else [-100] * len(part)
    return ids, labels


@each_rule
@each_case
def test_masks_are_those_made_by_hand(case: Case, marked: bool) -> None:
    tokenizer = tokenizer_of(case, marked=marked)
    example = made(record_of(case), tokenizer)
    assert example.text == case.text
    ids, labels = labels_by_hand(tokenizer, case.parts)
    assert example.input_ids.tolist() == ids and example.labels.tolist() == labels


@each_rule
@each_case
@pytest.mark.parametrize("kind", [gpt2, llama3, words_with_spaces_behind, llama2, llama2_legacy, gemma, qwen2])
def test_a_token_with_a_scored_character_is_scored(kind: Callable[[], Any], case: Case, marked: bool) -> None:
    """Runs of scored tokens hold the scored parts, and of all their tokens only the outer two may hold more."""
    tokenizer = tokenizer_of(case, marked=marked, kind=kind)
    example = made(record_of(case), tokenizer)
    assert example.input_ids.tolist() == tokenizer(case.text, add_special_tokens=False)["input_ids"]
    scored = example.labels != -100
    assert (example.labels[scored] == example.input_ids[scored]).all()
    edges = np.flatnonzero(np.diff(np.r_[0, scored.astype(int), 0]))
    parts = [text for text, is_scored in case.parts if is_scored]
    for (start, stop), part in zip(edges.reshape(-1, 2), parts, strict=True):
        run, inner = (
            tokenizer.decode(example.input_ids[ends].tolist(), clean_up_tokenization_spaces=False)
            for ends in (slice(start, stop), slice(start + 1, stop - 1))
        )
        assert part.strip() in run and inner.strip() in part


@each_case
def test_marks_are_those_of_transformers(case: Case) -> None:
    for kind in (byte_tokenizer, gpt2, gemma):
        tokenizer = tokenizer_of(case, marked=True, kind=kind)
        theirs = tokenizer.apply_chat_template(
            case.messages, tools=case.tools, return_dict=True, return_assistant_tokens_mask=True
        )
        example = made(record_of(case), tokenizer)
        assert example.input_ids.tolist() == theirs["input_ids"]
        assert (example.labels != -100).astype(int).tolist() == theirs["assistant_masks"]


@each_rule
@each_case
def test_each_turn_stands_in_the_text(case: Case, marked: bool) -> None:
    example = made(record_of(case), tokenizer_of(case, marked=marked))
    assert example.text is not None
    turns = [(turn.role, example.text[turn.start : turn.end]) for turn in example.turns if turn.role != "template"]
    said = [(message["role"], message.get("content")) for message in case.messages]
    if case.tools:
        assert turns[1] == ("assistant", case.parts[1][0].removesuffix("<|im_end|>\n"))
        (template,) = (turn for turn in example.turns if turn.role == "template")
        assert '"name": "weather"' in example.text[template.start : template.end]
        turns, said = turns[:1] + turns[2:], said[:1] + said[2:]
    assert turns == said
    assert made(record_of(case), tokenizer_of(case, marked=marked), store_text=False).turns == ()


REWRITES = CHATML.replace(
    "message.content + '<|im_end|>\\n' }}{% endg", "('' if loop.last else '!') + message.content }}{% endg"
)
LAST_USER_HAS_TOOLS = """\
{%- for message in messages %}
    {%- set last = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}
    {%- if message == last and tools %}{{ '[TOOLS]' }}{% endif %}
    {{- message.role + ':' + message.content + '\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}
"""  # fmt: skip
OPENS_WITH_THOUGHT = LLAMA3.replace(
    "assistant<|end_header_id|>\\n\\n'", "assistant<|end_header_id|>\\n\\n<think>'"
)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (REWRITES, "renders message 3 of row 7 of a.jsonl in another way when messages follow it"),
        (LAST_USER_HAS_TOOLS, "renders message 2 of row 7 of a.jsonl in another way when messages follow it"),
        (OPENS_WITH_THOUGHT, "opens the assistant's turn in another way than it renders message 3 of row 7"),
    ],
)
def test_a_template_that_rewrites_turns_is_refused_unless_it_marks_them(template: str, reason: str) -> None:
    case = Case("", template, TALK, "", CASES[0].special, tools=[WEATHER])
    with pytest.raises(UserError, match=reason) as error:
        made(record_of(case), tokenizer_of(case, marked=False))
    assert "set corpus.chat_template" in str(error.value) and "\n" not in str(error.value)
    if "endgeneration" in template:
        assert made(record_of(case), tokenizer_of(case, marked=True)).scored > 10
    single = [TALK[1], TALK[2]]  # one turn is not rewritten
    if template is not OPENS_WITH_THOUGHT:
        assert made({"m": single, "tools": [WEATHER]}, tokenizer_of(case, marked=False)).scored > 10


BAD: list[tuple[Any, str]] = [
    ("hello", "must be a list of messages with a role and a content, but is str"),
    (None, "but is null"),
    (["hello"], "message 1 of row 7 of a.jsonl must be an object"),
    ([{"content": "a"}], "message 1 of row 7 of a.jsonl has no role; it has content"),
    ([{"from": "human", "value": "a"}], "rename from to role .human is user, gpt is assistant."),
    ([{"role": "user", "content": 3}], "the content of message 1 .* must be a text, but is int"),
    ([{"role": "user", "content": None}], "message 1 .* has no content; give a text, or tool_calls"),
    ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "a part of type 'image', but only texts can"),
    ([{"role": "user", "content": [{"type": "text"}]}], "a part of type text without a text"),
    ([{"role": "assistant", "content": "a", "tool_calls": 3}], "the tool_calls of message 1 .* must be a list"),
    ([{"role": "system", "content": "a"}, TALK[2]], "cannot render row 7 of a.jsonl: System role not supported"),
    ([{"role": "assistant", "content": "\ud800"}], "half of a surrogate pair"),
]


@pytest.mark.parametrize(("messages", "reason"), BAD)
def test_bad_messages_are_refused_in_one_sentence(messages: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        made({"m": messages}, tokenizer_of(CASES[3], marked=False))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("messages", [[], TALK[:2]])
def test_a_conversation_without_the_assistant_has_nothing_to_score(messages: list[Any]) -> None:
    example = made({"m": messages}, tokenizer_of(CASES[0], marked=False))
    assert example.scored == 0 and not example.fault


def test_texts_of_parts_are_joined_and_nulls_of_arrow_are_no_keys() -> None:
    tokenizer = tokenizer_of(CASES[4], marked=False)
    parts = [{"type": "text", "text": "Rain "}, {"type": "text", "text": "in Ulm?", "image": None}]
    arguments = {"city": "Ulm", "street": None}
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}, "id": None}
    as_arrow = [
        {"role": "user", "content": parts, "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        *({**message, "tool_calls": None} for message in CALLS[2:]),
    ]
    for tools in ([WEATHER], json.dumps([WEATHER])):
        assert made({"m": as_arrow, "tools": tools}, tokenizer).text == CASES[4].text
    for tools in (None, [], "", "null"):
        assert "# Tools" not in (made({"m": as_arrow, "tools": tools}, tokenizer).text or "")
    for tools in ("[", "3", [3]):
        with pytest.raises(UserError, match=r"the tools of row 7 of a.jsonl must be a list of JSON schemas"):
            made({"m": as_arrow, "tools": tools}, tokenizer)


@each_rule
@pytest.mark.parametrize("name", ["model", "own"])
def test_prompt_and_completion_may_be_messages_or_texts(name: str, marked: bool) -> None:
    """Turns of the assistant in a prompt are context; a text is one turn."""
    template = CASES[0].template if marked else CASES[0].unmarked
    tokenizer = with_template(byte_tokenizer(), CASES[0], template if name == "model" else None)
    keys = {
        "messages": None,
        "prompt": "p",
        "completion": "c",
        "chat_template": template if name == "own" else name,
    }
    whole = made({"m": TALK}, tokenizer, chat_template=template)
    pair = made({"p": TALK[:4], "c": TALK[4:]}, tokenizer, **keys)
    assert pair.text == whole.text and pair.input_ids.tolist() == whole.input_ids.tolist()
    scored = tokenizer.decode(pair.input_ids[pair.labels != -100].tolist())
    assert scored == "No.\n\nNever<|im_end|>\n"
    texts = made({"p": TALK[1]["content"], "c": TALK[2]["content"]}, tokenizer, **keys)
    assert texts.text == made({"m": TALK[1:3]}, tokenizer, chat_template=template).text
    mixed = made({"p": TALK[1:2], "c": TALK[2]["content"]}, tokenizer, **keys)
    assert mixed.content_hash == texts.content_hash


def test_a_long_conversation_is_cut_as_a_pair_is() -> None:
    """First the start of what stands before the first scored token goes, but not BOS; then the end."""
    tokenizer = tokenizer_of(CASES[1], marked=False)
    whole = made(record_of(CASES[1]), tokenizer)
    first = int(np.argmax(whole.labels != -100))
    after = len(whole.labels) - first
    cut = made(record_of(CASES[1]), tokenizer, max_length=after + 10)
    assert cut.input_ids.tolist() == [whole.input_ids[0], *whole.input_ids[first - 9 :]]
    assert cut.scored == whole.scored and cut.text == whole.text and cut.turns == whole.turns
    short = made(record_of(CASES[1]), tokenizer, max_length=6)
    assert short.input_ids.tolist() == whole.input_ids[first - 1 : first + 5].tolist()
    chunks = make_examples(
        0, record_of(CASES[1]), "f", tokenizer,
        CorpusConfig(uri="x", messages="m", max_length=20, chunk=True), 100_000,
    )  # fmt: skip
    assert np.concatenate([chunk.labels for chunk in chunks]).tolist() == whole.labels.tolist()
    assert all(chunk.turns == () for chunk in chunks)


def test_a_rendering_is_the_same_on_every_day() -> None:
    dated = "{%- if strftime_now is defined %}{{ strftime_now('%d %b %Y, %Y-%m-%d') }}{% endif %}\n" + CHATML
    tokenizer = with_template(byte_tokenizer(), CASES[0], dated)
    assert (made({"m": TALK}, tokenizer).text or "").startswith("26 Jul 2024, 2024-07-26<|im_start|>system")


def test_a_template_runs_in_the_sandbox() -> None:
    for attack in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ):
        tokenizer = with_template(byte_tokenizer(), CASES[0], CHATML + attack)
        with pytest.raises(UserError, match="the chat template cannot render row 7"):
            made({"m": TALK}, tokenizer)


def test_threads_do_not_mix_their_marks() -> None:
    tokenizer = tokenizer_of(CASES[0], marked=True)
    talks = [[TALK[1], {"role": "assistant", "content": "x" * length}] for length in range(1, 200)]

    def scored(talk: list[dict[str, Any]]) -> int:
        return made({"m": talk}, tokenizer).scored

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(scored, talks)) == [length + 2 for length in range(1, 200)]


def test_a_template_for_tools_is_used_where_there_are_tools() -> None:
    tokenizer = with_template(byte_tokenizer(), CASES[4], None)
    tokenizer.chat_template = {"default": CHATML, "tool_use": QWEN}
    assert made(record_of(CASES[4]), tokenizer).text == CASES[4].text
    assert made({"m": TALK}, tokenizer).text == CASES[0].text


def test_several_columns_make_one_prompt() -> None:
    """As those of Alpaca; with a template they are a turn of the user, and without one plain text."""
    tokenizer = with_template(byte_tokenizer(), CASES[0], CASES[0].unmarked)
    keys: dict[str, Any] = {"messages": None, "prompt": ["instruction", "input"], "completion": "output"}
    for given, said in (("3, 4", "Add.\n\n3, 4"), ("", "Add."), (None, "Add.")):
        record = {"instruction": "Add.", "input": given, "output": "7"}
        plain = made(record, tokenizer, **keys)
        assert plain.text == f"{said}7" and plain.scored == 1
        chat = made(record, tokenizer, **keys, chat_template="model")
        assert chat.text == f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n7<|im_end|>\n"
        assert chat.scored == 3
    for template in (None, "model"):
        with pytest.raises(UserError, match="the prompt of row 7"):
            made({"instruction": "Add.", "input": 3, "output": "7"}, tokenizer, **keys, chat_template=template)
