"""The reference of the HTTP API, from the OpenAPI document of the application."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from docs_generators.json_schema import Schema, type_in_words
from docs_generators.markdown import anchor, code, fenced, page, paragraphs, sentence, table
from flows import serve
from flows.serve.app import create_app
from flows.serve.errors import ApiError
from flows.serve.limits import Access
from flows.serve.state import Limits

_INTRODUCTION = """\
# HTTP API

`lorif serve INDEX` answers these requests. The running server describes itself in the same words at `/docs`,
and as an OpenAPI document at `/openapi.json`. Bodies are JSON, sent with `Content-Type: application/json`.
Every response carries the number of the generation that answered in the header `X-Lorif-Generation`.

A server that can be reached from other machines needs a token: requests then carry `Authorization: Bearer TOKEN`.
The pages `/` and `/docs`, and `/health` and `/openapi.json`, need none.
"""
_EXAMPLE = """\
curl -s localhost:8765/answers -H 'Content-Type: application/json' \\
  -d '{"text": "...", "top_k": 5}'
"""
_ERRORS = """\
## Errors {#errors}

The body of every error is `{"error": {"code": ..., "message": ...}}`. Programs should depend on the status and
on `code`; `message` is one sentence for people.
"""


def http_page() -> str:
    """The page `reference/http.md`."""
    document = openapi_document()
    schemas = document["components"]["schemas"]
    sent = _sent_objects(document)
    shown = [name for name in schemas if name not in ("Error", "ErrorBody")]
    return page(
        _INTRODUCTION,
        fenced("sh", _EXAMPLE),
        *(block for operation in _operations(document) for block in _operation(*operation)),
        "## Limits {#limits}",
        "Requests beyond these limits are refused.",
        _limits_table(),
        _ERRORS,
        _status_table(document),
        "## Objects {#objects}",
        *(block for name in shown for block in _object(name, schemas[name], name in sent)),
    )


def openapi_document() -> dict[str, Any]:
    """The OpenAPI document of a server that needs a token; no index or model is loaded."""
    unused = cast(Any, None)
    access = Access(token="documented", is_loopback=False)
    return create_app(unused, unused, access).openapi()


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {method} {path} {{#{method.lower()}-{path.strip('/')}}}"
    yield paragraphs(operation.get("description"))
    for parameter in operation.get("parameters", ()):
        meaning = sentence(parameter["description"])
        yield f"Query parameter {code(parameter['name'])}: {_type(parameter['schema'])}. {meaning}"
    if "requestBody" in operation:
        yield f"Body: {_content(operation['requestBody'])}"
    yield f"Response: {_content(operation['responses']['200'])}"
    statuses = [status for status in operation["responses"] if status != "200"]
    yield f"Errors: {', '.join(f'[{status}](#status-{status})' for status in statuses)}."


def _content(message: Mapping[str, Any]) -> str:
    """What a body may consist of, by media type."""
    kinds = [f"{_type(part['schema'])} as {code(media)}" for media, part in message["content"].items()]
    return f"{', or '.join(kinds)}."


def _type(schema: Schema) -> str:
    return type_in_words(schema, lambda name: f"[{name}](#{_object_anchor(name)})")


def _object_anchor(name: str) -> str:
    return f"object-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}"


def _object(name: str, schema: Schema, is_sent: bool) -> Iterator[str]:
    """A heading and the fields; defaults are shown of objects that clients send."""
    yield f"### {name} {{#{_object_anchor(name)}}}"
    yield paragraphs(schema.get("description"))
    required = schema.get("required", [])
    rows = []
    for field, kind in schema.get("properties", {}).items():
        default = "required" if field in required else code(json.dumps(kind.get("default")))
        rows.append([code(field), _type(kind), *([default] if is_sent else []), sentence(kind.get("description"))])
    yield table(["Field", "Type", *(["Default"] if is_sent else []), "Meaning"], rows)


def _sent_objects(document: Mapping[str, Any]) -> set[str]:
    """Names of the schemas that request bodies consist of."""
    bodies = [operation["requestBody"] for _, _, operation in _operations(document) if "requestBody" in operation]
    names, waiting = set[str](), _references(bodies)
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting |= _references(document["components"]["schemas"][name])
    return names


def _references(tree: Any) -> set[str]:
    """Names of the schemas that a part of a document refers to."""
    return set(re.findall(r"#/components/schemas/(\w+)", json.dumps(tree)))


def _limits_table() -> str:
    rows = []
    for name, field in Limits.model_fields.items():
        rows.append([code(name), f"{field.default:,}", sentence(field.description)])
    return table(["Limit", "Value", "Meaning"], rows)


def _status_table(document: Mapping[str, Any]) -> str:
    meanings: dict[str, str] = {}
    for _, _, operation in _operations(document):
        for status, response in operation["responses"].items():
            if status != "200":
                meanings.setdefault(status, response["description"])
    codes = error_codes()
    rows = []
    for status in sorted({*meanings, *codes}):
        meaning = meanings.get(status) or HTTPStatus(int(status)).phrase
        listed = ", ".join(code(name) for name in sorted(codes.get(status, ())))
        rows.append([anchor(f"status-{status}") + code(status), listed, sentence(meaning)])
    return table(["Status", "Codes", "Meaning"], rows)


def error_codes() -> dict[str, set[str]]:
    """The codes that the server answers with, by status, read from its source."""
    found: dict[str, set[str]] = {}
    for path in Path(serve.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for status, name in _pairs(node):
                found.setdefault(status, set()).add(name)
    return found


def _pairs(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The status and the code of an `ApiError` that is made, or of an entry `404: ("code", "message")`."""
    candidates: list[tuple[ast.AST | None, ast.AST]] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == ApiError.__name__:
        candidates = [(node.args[0], node.args[1])]
    elif isinstance(node, ast.Dict):
        candidates = [
            (key, value.elts[0])
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(value, ast.Tuple) and len(value.elts) == 2
        ]
    for status, name in candidates:
        if isinstance(status, ast.Constant) and isinstance(name, ast.Constant) and isinstance(status.value, int):
            yield str(status.value), str(name.value)
