"""Checks that no page of the site loads anything from another host."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_LOADING = {"src", "srcset", "poster", "data", "background"}
_LINK_KINDS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "modulepreload", "manifest"}
_ELSEWHERE = re.compile(r"\s*(https?:)?//", re.I)
_IN_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\"')\s;]+)", re.I)


def loads_from_elsewhere(site: Path) -> Iterator[str]:
    """Each file of the site that would load something from another host, with the address."""
    for path in sorted(site.rglob("*.html")):
        parser = _Loads()
        parser.feed(path.read_text(encoding="utf-8"))
        yield from (f"{path.relative_to(site)}: {address}" for address in parser.addresses)
    for path in sorted(site.rglob("*.css")):
        for address in _IN_CSS.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: {address}"


class _Loads(HTMLParser):
    """Collects the addresses on other hosts that a browser fetches while it shows a page; links do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        loaded = [values[name] for name in _LOADING & values.keys()]
        if tag == "link" and _LINK_KINDS & set(values.get("rel", "").lower().split()):
            loaded.append(values.get("href", ""))
        loaded += _IN_CSS.findall(values.get("style", ""))
        self.addresses += [address for address in loaded if _ELSEWHERE.match(address)]

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.addresses += _IN_CSS.findall(data)
