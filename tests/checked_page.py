"""A page taken apart, for the tests of what is shown."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "input", "img"}  # tags that are never closed
LINKS = {"src", "href", "xlink:href", "data", "poster"}


class Checked(HTMLParser):
    """Collects what a page shows and refers to; tags must close in order."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words = ""
        self.links: list[str] = []
        self.feed(markup)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if value and name in LINKS]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if value and name in LINKS]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data if not self.open or self.open[-1] != "style" else ""
