"""Chat templates: which one a corpus is rendered with, and the rendering, in the sandbox of transformers."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from lorif_core.config import OF_THE_MODEL, CorpusConfig
from lorif_core.corpus.messages import Message
from lorif_core.errors import UserError
from lorif_core.storage.faults import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Spans = list[tuple[int, int]]
"""(start, end) in characters, ascending and disjoint."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_DEFAULT, _WITH_TOOLS = "default", "tool_use"
_DATE = (
    '{%- macro strftime_now(format) -%}{{ format | replace("%Y", "2024") | replace("%y", "24")'
    ' | replace("%m", "07") | replace("%B", "July") | replace("%b", "Jul") | replace("%d", "26")'
    ' | replace("%A", "Friday") | replace("%a", "Fri") | replace("%H", "00") | replace("%M", "00")'
    ' | replace("%S", "00") }}{%- endmacro %}\n'
)
"""Replaces the clock in a template: a row and a query must be the same text on every day. The date is that of the
templates of Llama 3 where there is no clock."""

_tracking = Lock()  # transformers notes the marks of a rendering in the compiled template, which threads share


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A Jinja template, with the special tokens that it names.

    Attributes:
        source: the template.
        tools_source: another one for conversations with tools; None if it is the same.
        special_tokens: such as bos_token, by the name that the template uses.
    """

    source: str
    tools_source: str | None
    special_tokens: dict[str, str]

    def to_json(self) -> str:
        """Canonical JSON, which identifies it in a spec."""
        values = [self.source, self.tools_source, self.special_tokens]
        return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "ChatTemplate":
        """Inverse of `to_json`."""
        return cls(*json.loads(text))

    def marks_assistant(self, tools: Any) -> bool:
        """Whether the template marks what the assistant says with `{% generation %}`."""
        return _GENERATION.search(self._source_for(tools)) is not None

    def render(
        self, messages: Sequence[Message], tools: Any, where: str, *, generation_prompt: bool = False
    ) -> str:
        """The text of messages; with `generation_prompt` also the start of the assistant's next turn.

        Raises:
            UserError: the template refuses the messages, or fails.
        """
        return self._render(messages, tools, where, generation_prompt=generation_prompt)[0]

    def render_marked(self, messages: Sequence[Message], tools: Any, where: str) -> tuple[str, Spans]:
        """The text, and what of it the template marks as the assistant's. Raises UserError as `render`."""
        with _tracking:
            text, spans = self._render(messages, tools, where, marked=True)
        ends = [0, *(end for _, end in spans)]
        if any(start < before for (start, _), before in zip(spans, ends, strict=False)) or ends[-1] > len(text):
            raise UserError(
                f"the chat template marks overlapping parts of {where} with its generation tags; use them at the "
                f"top of the template, not in a macro"
            )
        return text, [span for span in spans if span[1] > span[0]]

    def _source_for(self, tools: Any) -> str:
        return self.source if tools is None or self.tools_source is None else self.tools_source

    def _render(
        self,
        messages: Sequence[Message],
        tools: Any,
        where: str,
        *,
        generation_prompt: bool = False,
        marked: bool = False,
    ) -> tuple[str, Spans]:
        from transformers.utils.chat_template_utils import render_jinja_template  # imports torch

        source = self._source_for(tools)
        try:
            (text,), spans = render_jinja_template(
                conversations=[list(messages)],
                tools=None if tools is None else list(tools),
                chat_template=_DATE + source if "strftime_now" in source else source,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=generation_prompt,
                **self.special_tokens,
            )
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  a template may raise anything, and it refuses messages so
            raise UserError(
                f"the chat template cannot render {where}: {one_line(error) or type(error).__name__}; correct or "
                f"remove it, or set corpus.chat_template to a template that accepts it"
            ) from None
        return text, [tuple(span) for span in spans[0]] if marked else []


def corpus_template(corpus: CorpusConfig, tokenizer: "PreTrainedTokenizerBase | None") -> ChatTemplate | None:
    """The template that a corpus is rendered with; None if it has no conversations. Raises as `template_of`."""
    return template_of(tokenizer, corpus.chat_template) if corpus.has_chat else None


def template_of(tokenizer: "PreTrainedTokenizerBase | None", own: str | None = None) -> ChatTemplate:
    """The chat template of a tokenizer, or one's own with its special tokens.

    Raises:
        UserError: there is no tokenizer, it has no template, or the template is not valid Jinja.
    """
    if tokenizer is None:
        raise UserError("messages need a tokenizer, and the model has none; save one in its folder")
    stored = tokenizer.chat_template if own in (None, OF_THE_MODEL) else own
    named: dict[str, str] = {_DEFAULT: stored} if isinstance(stored, str) else dict(stored or {})
    if _DEFAULT not in named:
        listed = f" named {_DEFAULT} (it has {', '.join(sorted(named))})" if named else ""
        raise UserError(
            f"messages need a chat template, and the model's tokenizer has none{listed}; set corpus.chat_template "
            f"to a Jinja template or to the path of its file, or save the tokenizer with a chat_template"
        )
    sources = [named[_DEFAULT], *([named[_WITH_TOOLS]] if _WITH_TOOLS in named else [])]
    for source in sources:
        _check_syntax(source)
    special = {
        name: str(token)
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str) and any(name in source for source in sources)
    }
    return ChatTemplate(sources[0], sources[1] if len(sources) > 1 else None, special)


@cache
def _check_syntax(source: str) -> None:
    """Raise UserError for a template that is not valid Jinja."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template(conversations=[[]], chat_template=source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the chat template is not valid Jinja in line {error.lineno}: {one_line(error)}; correct it"
        ) from None
    except Exception as error:  # noqa: BLE001  a valid template may fail without messages
        log.debug("the chat template renders no empty conversation: %s", one_line(error))
