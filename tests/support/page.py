"""Parses an HTML page for tests."""

import html.parser


class Page(html.parser.HTMLParser):
    """The elements and text of a page; asserts that its tags match."""

    VOID = frozenset(("meta", "link", "img", "input", "wbr"))

    def __init__(self, content):
        super().__init__()
        self.elements, self._texts, self._open = [], [], []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag != "wbr":
            self._texts.append(" ")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self._texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self._texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]
