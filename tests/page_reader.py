"""How tests read a page: its tags, and what a browser would show."""

import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "br", "hr", "img", "link", "input", "line", "circle", "rect", "polyline"}
INLINE = {"code", "span", "time", "a", "small"}


class Page(HTMLParser):
    """Balance of the tags, and what a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.ids: list[str] = []
        self.feed(html)
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag in self.open]
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        self.text += "" if tag in INLINE else " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> at {self.getpos()} while {self.open[-3:]} are open")
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def drawn(self) -> list[str]:
        """The keys of the plots on the page."""
        return [
            (attrs["aria-labelledby"] or "").partition("-title")[0]
            for tag, attrs in self.tags
            if tag == "svg" and "aria-labelledby" in attrs
        ]


def assert_safe(html: str, twin: str) -> Page:
    """Well formed, with unique ids; runs nothing, loads nothing, links to its JSON alone."""
    page = Page(html)
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert {attrs["href"] for _, attrs in page.tags if "href" in attrs} == {twin}
    assert not [v for _, attrs in page.tags for v in attrs.values() if v and "//" in v]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    assert "default-src 'none'" in html
    for key in page.drawn():
        assert f"{key}-title" in page.ids and f"{key}-desc" in page.ids
    return page
