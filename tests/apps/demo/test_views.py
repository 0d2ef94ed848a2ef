"""Tables and lists as HTML: escaped, in order, with what moved."""

from __future__ import annotations

from html.parser import HTMLParser

from virtue_pl.apps.demo.answers import Ranked
from virtue_pl.apps.demo.views import hits_grid, order_list, ranking_table, strip

EVIL = "<img src=x onerror=alert(1)>'\""


class Reader(HTMLParser):
    """Tags of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_no_text_becomes_a_tag():
    hit = {"source": None, "box": None, "score": 0.5, "name": EVIL, "image": EVIL}
    pages = [
        ranking_table([Ranked(EVIL, 0.1, 0.2, 1, 1)], True),
        order_list(EVIL, [(EVIL, 0.5)]),
        hits_grid([hit]),
        strip([(EVIL, "data:image/jpeg;base64,AAAA")], EVIL),
    ]
    for page in pages:
        found = Reader(page).tags
        assert not any("onerror" in attributes for _, attributes in found)
        assert sum(tag == "img" for tag, _ in found) == (page == pages[3])
    assert Reader(pages[3]).tags[1][1]["data-image"] == EVIL


def test_the_table_says_where_a_caption_came_from():
    rows = [Ranked("a", 0.1, 0.5, 3, 1), Ranked("b", 0.4, 0.3, 1, 2), Ranked("c", 0.2, 0.2, 2, 3)]
    table = ranking_table(rows, True)
    assert table.index(">a<") < table.index(">b<") < table.index(">c<")
    assert "▲&nbsp;2" in table and table.count("▼&nbsp;1") == 2
    assert "before" not in ranking_table(rows, False)


def test_a_hit_has_its_region_drawn_and_its_number():
    hits = [{"source": "data:image/jpeg;base64,AAAA", "box": (0.1, 0.2, 0.5, 0.6), "score": 0.5, "name": "a#1"}] * 2
    tags = Reader(hits_grid(hits)).tags
    assert [attributes["data-hit"] for tag, attributes in tags if tag == "button"] == ["0", "1"]
    rectangle = next(attributes for tag, attributes in tags if tag == "rect")
    assert (rectangle["x"], rectangle["width"]) == ("0.1000", "0.4000")
