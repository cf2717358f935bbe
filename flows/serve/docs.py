"""The OpenAPI document as a page, drawn here: with no script, and nothing from a CDN as Swagger's page has."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def docs_page(document: dict[str, Any], nonce: str) -> str:
    """The operations of an OpenAPI document, their bodies and answers, and all schemas."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = document.get("components", {}).get("schemas", {})
    return _template().render(info=document["info"], operations=operations, schemas=schemas, nonce=nonce)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("flows.serve"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["kind"] = _kind
    return environment.get_template("docs.html.j2")


def _kind(schema: dict[str, Any]) -> str:
    """The type of a value in words: `string | null`, `list of Hit`, with its bounds."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f'"{value}"' for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}{_bounds(schema)}" if "items" in schema else "list"
    return f"{schema.get('type', 'any')}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    names = {
        "minimum": "at least", "maximum": "at most", "exclusiveMaximum": "below", "minLength": "at least",
        "maxLength": "at most", "minItems": "at least", "maxItems": "at most",
    }  # fmt: skip
    unit = {"minLength": " characters", "maxLength": " characters"}
    told = [f"{word} {schema[key]}{unit.get(key, '')}" for key, word in names.items() if key in schema]
    return f" ({', '.join(told)})" if told else ""
