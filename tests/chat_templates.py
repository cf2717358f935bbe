"""Chat templates in the formats of five families, conversations, and renderings with the scored parts marked.

The templates are written here from the published formats. `[[` and `]]` stand around what is scored.
"""

import re
from dataclasses import dataclass
from typing import Any

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + '<|im_end|>\\n' }}{% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content | trim + '<|eot_id|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- else %}
        {%- generation %}{{- ' ' + message.content | trim + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """\
{{- bos_token }}
{%- if messages and messages[0].role == 'system' %}
    {{- raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content | trim + '<end_of_turn>\\n' }}{% endgeneration %}
    {%- else %}
        {{- message.content | trim + '<end_of_turn>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""
QWEN = """\
{{- '<|im_start|>system\\n' }}
{{- messages[0].content if messages and messages[0].role == 'system' else 'You are a helpful assistant.' }}
{%- if tools %}
    {{- '\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the query.\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- if message.content %}{{- message.content }}{% endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say user."},
    {"role": "assistant", "content": "user, naïve 🙂"},
    {"role": "user", "content": "And  again?"},
    {"role": "assistant", "content": "No.\n\nNever"},
]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Rain in Ulm?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "dry, 8 degrees"},
    {"role": "assistant", "content": "No rain."},
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A template with marks, a conversation, and its rendering by hand."""

    name: str
    template: str
    messages: list[dict[str, Any]]
    rendering: str
    special: tuple[str, ...]
    tools: list[dict[str, Any]] | None = None
    bos: str | None = None
    eos: str | None = None

    @property
    def unmarked(self) -> str:
        """The template without generation tags."""
        return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", self.template)

    @property
    def parts(self) -> list[tuple[str, bool]]:
        """The pieces of the rendering, and whether each is scored."""
        pieces = re.split(r"\[\[|\]\]", self.rendering)
        return [(piece, number % 2 == 1) for number, piece in enumerate(pieces) if piece]

    @property
    def text(self) -> str:
        return "".join(piece for piece, _ in self.parts)


_IM = ("<|im_start|>", "<|im_end|>")
CASES = (
    Case(
        "ChatML", CHATML, TALK,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay user.<|im_end|>\n"
        "<|im_start|>assistant\n[[user, naïve 🙂<|im_end|>\n]]<|im_start|>user\nAnd  again?<|im_end|>\n"
        "<|im_start|>assistant\n[[No.\n\nNever<|im_end|>\n]]",
        _IM,
    ),
    Case(
        "Llama 3", LLAMA3, TALK,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSay user.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[user, naïve 🙂<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd  again?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[No.\n\nNever<|eot_id|>]]",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
    ),
    Case(
        "Mistral", MISTRAL, TALK[1:],
        "<s>[INST] Say user.[/INST][[ user, naïve 🙂</s>]][INST] And  again?[/INST][[ No.\n\nNever</s>]]",
        ("</s>",), bos="<s>", eos="</s>",
    ),
    Case(
        "Gemma", GEMMA, TALK[1:],
        "<bos><start_of_turn>user\nSay user.<end_of_turn>\n<start_of_turn>model\n[[user, naïve 🙂<end_of_turn>\n]]"
        "<start_of_turn>user\nAnd  again?<end_of_turn>\n<start_of_turn>model\n[[No.\n\nNever<end_of_turn>\n]]",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"), bos="<bos>",
    ),
    Case(
        "Qwen with tools", QWEN, CALLS,
        "<|im_start|>system\nYou are a helpful assistant.\n\n# Tools\n\nYou may call one or more functions to "
        'assist with the query.\n<tools>\n{"type": "function", "function": {"name": "weather", "parameters": '
        '{"type": "object", "properties": {"city": {"type": "string"}}}}}\n</tools><|im_end|>\n<|im_start|>user\n'
        'Rain in Ulm?<|im_end|>\n<|im_start|>assistant\n[[<tool_call>\n{"name": "weather", "arguments": '
        '{"city": "Ulm"}}\n'
        "</tool_call><|im_end|>\n]]<|im_start|>user\n<tool_response>\ndry, 8 degrees\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n[[No rain.<|im_end|>\n]]",
        _IM, tools=[WEATHER],
    ),
)  # fmt: skip


def with_template(tokenizer: Any, case: Case, template: str | None) -> Any:
    """The tokenizer, changed: with the special tokens of a case, and a chat template."""
    tokenizer.add_tokens(
        [token for token in case.special if token not in tokenizer.get_vocab()], special_tokens=True
    )
    tokenizer.bos_token, tokenizer.eos_token = case.bos, case.eos
    tokenizer.chat_template = template
    return tokenizer
