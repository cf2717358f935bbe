"""The demo's texts that every Python installation has, language reference and docstrings, and our questions."""

import ast
import itertools
import json
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics as reference_topics

from tasks.demo.passages import ENOUGH_CHARS, normalise, passages

_MAX_DOCSTRINGS = 1500
_STATEMENTS = frozenset(
    {
        "assert", "break", "class", "continue", "del", "exceptions", "for", "function", "global", "if", "nonlocal",
        "pass", "raise", "return", "try", "while", "with", "yield",
    }
)  # fmt: skip

_EXCLUDED_FOLDERS = frozenset({"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages"})
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One training example; `topics` are the reference topics, the module or the pair of functions it is about."""

    paragraph_id: str
    topics: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the answer whose loss is attributed; the model gave an own answer, we typed the others."""

    question_id: str
    prompt: str
    completion: str
    is_own: bool = False


QUESTIONS: tuple[Question, ...] = (
    Question(
        "raise-from",
        'What is the "from" clause of a "raise" statement used for? ',
        'It is used for exception chaining: the raised exception is attached as the "__cause__" attribute.',
    ),
    Question(
        "nonlocal",
        'What does the "nonlocal" statement do? ',
        "It causes the listed identifiers to refer to previously bound variables in the nearest enclosing scope.",
    ),
    Question(
        "loop-else",
        'When is the "else" clause of a "for" loop executed? ',
        'When the items are exhausted and no "break" statement terminates the loop.',
    ),
    Question(
        "with-exit",
        'What does the return value of "__exit__()" do in a "with" statement? ',
        "If the return value was true, the exception is suppressed.",
    ),
)


def language_reference() -> list[Paragraph]:
    """Passages of the Python language reference of this interpreter, shortest topics first.

    A passage is inside one section of one topic. Topics quote one another, so a passage that occurs in several
    topics (equal except for case, white space and heading level) appears once, with all of its topics, and has the
    name of the shortest one.
    """
    texts: dict[str, str] = {}
    topics: dict[str, list[str]] = {}
    for topic in sorted(reference_topics, key=lambda name: (len(reference_topics[name]), name)):
        for text in passages(reference_topics[topic]):
            key = normalise(text)
            texts.setdefault(key, text)
            topics_of_text = topics.setdefault(key, [])
            if topic not in topics_of_text:
                topics_of_text.append(topic)
    counters: Counter[str] = Counter()
    paragraphs = []
    for key, text in texts.items():
        shortest = topics[key][0]
        counters[shortest] += 1
        paragraphs.append(Paragraph(f"{shortest}/{counters[shortest]}", tuple(topics[key]), text))
    return paragraphs


def passages_on_statements() -> list[Paragraph]:
    """The passages of the language reference on statements and exceptions."""
    return [paragraph for paragraph in language_reference() if not _STATEMENTS.isdisjoint(paragraph.topics)]


def library_docstrings(limit: int = _MAX_DOCSTRINGS) -> list[Paragraph]:
    """Docstrings of the standard library, parsed from its source files without importing them.

    Returns at most `limit`, spread evenly over the library in alphabetical order. Each is at least as long as a
    short passage and cut to the length of a long one. Its topic is the top-level module.
    """
    unique: dict[str, Paragraph] = {}
    names: set[str] = set()
    for paragraph in _walk_library():
        key = normalise(paragraph.text)
        if key not in unique and paragraph.paragraph_id not in names:
            unique[key] = paragraph
            names.add(paragraph.paragraph_id)
    docstrings = list(unique.values())
    if len(docstrings) <= limit:
        return docstrings
    return [docstrings[index * len(docstrings) // limit] for index in range(limit)]


def write_jsonl(paragraphs: Iterable[Paragraph], path: Path) -> None:
    """Write one JSON object per line, with the fields id, text and topics."""
    with path.open("w", encoding="utf-8") as file:
        for paragraph in paragraphs:
            record = {"id": paragraph.paragraph_id, "text": paragraph.text, "topics": paragraph.topics}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _walk_library() -> Iterator[Paragraph]:
    """All usable docstrings of the standard library's source files, in alphabetical order of modules."""
    library = Path(sysconfig.get_path("stdlib"))
    for module in sorted(name for name in sys.stdlib_module_names if not name.startswith("_")):
        for source in (library / f"{module}.py", *sorted((library / module).rglob("*.py"))):
            parts = source.relative_to(library).with_suffix("").parts
            if source.is_file() and _EXCLUDED_FOLDERS.isdisjoint(parts):
                yield from _docstrings(source, ".".join(parts).removesuffix(".__init__"))


def _docstrings(source: Path, module: str) -> Iterator[Paragraph]:
    """The docstrings of one file, each cut to its first passage, outer definitions before inner ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler warns about escape sequences in old modules
        definitions: list[tuple[str, _Documented]] = [(module, ast.parse(source.read_bytes()))]
    for name, node in definitions:
        docstring = ast.get_docstring(node) or ""
        if len(docstring) >= ENOUGH_CHARS // 2:
            for text in itertools.islice(passages(docstring), 1):
                yield Paragraph(name, (module.partition(".")[0],), text)
        definitions += [
            (f"{name}.{child.name}", child)
            for child in node.body
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
