"""JSON schemas in words: the types and limits of configuration keys and of HTTP fields."""

import json
from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]

_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}


def type_in_words(schema: Schema, name_of: Callable[[str], str] = str) -> str:
    """The type of a value as Markdown, such as "integer (at least 1)" or "string or null".

    Args:
        schema: the part of a JSON schema that describes the value.
        name_of: writes the name of a schema that is referred to, for example as a link.
    """
    if "$ref" in schema:
        return name_of(str(schema["$ref"]).rpartition("/")[2])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            options = list(dict.fromkeys(type_in_words(option, name_of) for option in schema[key]))
            return (", or " if options[0].startswith("list") else " or ").join(options)
    if len(schema.get("allOf", ())) == 1:
        return type_in_words(schema["allOf"][0], name_of)
    if "const" in schema:
        return _literal(schema["const"])
    if "enum" in schema:
        return " or ".join(_literal(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return _array_in_words(schema, name_of)
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {type_in_words(schema['additionalProperties'], name_of)}"
    return _with_limits(str(schema.get("type", "any value")), schema)


def _array_in_words(schema: Schema, name_of: Callable[[str], str]) -> str:
    if "prefixItems" in schema:
        return f"list of ({', '.join(type_in_words(item, name_of) for item in schema['prefixItems'])})"
    items = type_in_words(schema["items"], name_of) if schema.get("items") else "any values"
    return f"{_with_limits('list', schema)} of {f'({items})' if ' or ' in items else items}"


def _with_limits(name: str, schema: Schema) -> str:
    limits = [text.format(_number(schema[key])) for key, text in _LIMITS.items() if key in schema]
    if "minItems" in schema and schema["minItems"] == schema.get("maxItems"):
        limits = [f"{schema['minItems']} items"]
    return f"{name} ({', '.join(limits)})" if limits else name


def _number(value: float) -> str:
    """Large powers of two as powers: nobody reads ten digits."""
    size = abs(int(value))
    if size >= 2**31 and size & (size - 1) == 0:
        return f"{'-' if value < 0 else ''}2^{size.bit_length() - 1}"
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _literal(value: object) -> str:
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"
