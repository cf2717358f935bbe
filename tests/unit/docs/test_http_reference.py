"""The reference of the HTTP API has every operation, object, field and status of the OpenAPI document."""

from docs_generators.http_reference import error_codes, http_page, openapi_document


def test_the_page_has_all_that_the_openapi_document_has() -> None:
    page, document = http_page(), openapi_document()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"## {method.upper()} {path} " in page
            assert operation["description"]
            section = page.partition(f"## {method.upper()} {path} ")[2].partition("\n## ")[0]
            assert all(f"`{parameter['name']}`" in section for parameter in operation.get("parameters", ()))
            assert all(
                f'<a id="status-{status}"></a>' in page for status in operation["responses"] if status != "200"
            )
    for name, schema in document["components"]["schemas"].items():
        if name not in ("Error", "ErrorBody"):
            section = page.partition(f"### {name} {{#")[2].partition("\n### ")[0]
            assert all(f"| `{field}` |" in section for field in schema["properties"])


def test_types_and_limits_are_written_in_words() -> None:
    page = http_page()
    assert "| `top_k` | integer (at least 1, at most 100) | `10` |" in page
    assert "string (at most 100,000 characters) or null" in page


def test_every_documented_status_has_a_code() -> None:
    codes = error_codes()
    for methods in openapi_document()["paths"].values():
        for operation in methods.values():
            assert set(operation["responses"]) - {"200"} <= set(codes)
    assert codes["429"] == {"busy"} and codes["404"] == {"no_such_path", "no_such_example"}
