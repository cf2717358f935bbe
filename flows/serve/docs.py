"""The OpenAPI document as an HTML page that needs no script and loads nothing, unlike Swagger's page."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def docs_page(document: dict[str, Any], nonce: str) -> str:
    """An HTML page with the operations of an OpenAPI document, their responses, and all schemas."""
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
    environment.filters["type_name"] = _type_name
    return environment.get_template("docs.html.j2")


def _type_name(schema: dict[str, Any]) -> str:
    """The type of a value in words, with its bounds: `string | null`, `list of Hit`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(_type_name(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f'"{value}"' for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type_name(schema['items'])}{_bounds(schema)}" if "items" in schema else "list"
    return f"{schema.get('type', 'any')}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    words = {
        "minimum": "at least", "maximum": "at most", "exclusiveMaximum": "below", "minLength": "at least",
        "maxLength": "at most", "minItems": "at least", "maxItems": "at most",
    }  # fmt: skip
    units = {"minLength": " characters", "maxLength": " characters"}
    bounds = [f"{word} {schema[key]}{units.get(key, '')}" for key, word in words.items() if key in schema]
    return f" ({', '.join(bounds)})" if bounds else ""
