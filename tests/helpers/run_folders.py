"""Rows of a run's files, and a parser of the pages that reports write."""

import re
from html.parser import HTMLParser


def row(stage, seed, env_steps, updates, **numbers):
    return {
        "stage": stage,
        "seed": seed,
        "env_steps": env_steps,
        "updates": updates,
        "seconds": 9.0,
        **numbers,
    }


class Page(HTMLParser):
    """The visible text of a page, its tags, and every address it refers to."""

    def __init__(self, path):
        super().__init__()
        self.words, self.tags, self.addresses, self._hidden = [], [], [], False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._hidden = tag == "style"
        self.addresses += [value for name, value in attributes if name in ("src", "srcset", "href")]

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.words.append(data)
