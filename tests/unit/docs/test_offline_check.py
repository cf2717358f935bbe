"""A page that loads from another host is found; links to other hosts are not."""

from pathlib import Path

import pytest

from docs_generators.offline_check import loads_from_elsewhere


@pytest.mark.parametrize(
    "markup",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/x.css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img src="http://example.com/x.png">',
        '<p style="background: url(https://example.com/x.png)">',
        "<style>@import 'https://example.com/x.css';</style>",
    ],
)
def test_what_loads_is_found(tmp_path: Path, markup: str) -> None:
    (tmp_path / "page.html").write_text(f"<html><body>{markup}</body></html>")
    (address,) = loads_from_elsewhere(tmp_path)
    assert address.startswith("page.html: ")


def test_links_and_own_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<link rel="canonical" href="https://example.com/"><link rel="stylesheet" href="x.css">'
        '<a href="https://example.com">x</a><img src="x.svg"><script>const url = "https://example.com"</script>'
    )
    (tmp_path / "x.css").write_text("a { background: url(x.png) }")
    assert list(loads_from_elsewhere(tmp_path)) == []


def test_style_sheets_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "x.css").write_text('@import url("https://fonts.example/css"); a { color: red }')
    assert list(loads_from_elsewhere(tmp_path)) == ["x.css: https://fonts.example/css"]
