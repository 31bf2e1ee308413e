"""Pages as a browser takes them apart, and a text that must not act in one."""

from html.parser import HTMLParser

EVIL = "<script>alert('x')</script>\x1b[31mred & \u202eback\x85"


class Page(HTMLParser):
    """Collects the tags with their attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)
        self.text = "".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)
