"""Tables and page of a search by region: intervals, chance beside each row, and what is not above it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from virtue_pl.evaluation.reports.retrieval_report import RetrievalTable, retrieval_markdown, retrieval_page
from virtue_pl.evaluation.statistics.intervals import QUERIES, Estimate
from virtue_pl.evaluation.statistics.retrieval_estimates import RetrievalEstimate

CHANCE = {"hit@1": 0.01, "hit@10": 0.1, "map": 0.02}


def share(mean: float) -> Estimate:
    return Estimate(mean, mean - 0.04, mean + 0.04, 400, 1, 200, QUERIES)


TABLE = RetrievalTable(
    "gallery, seen",
    {
        "box": RetrievalEstimate({"hit@1": share(0.3), "hit@10": share(0.6), "map": share(0.3)}, CHANCE),
        "by index": RetrievalEstimate({"hit@1": share(0.04), "hit@10": share(0.12)}, CHANCE),
    },
    {"box": {"hit@1": share(0.26), "hit@10": share(0.48)}},
    {"box": "by index"},
    {"box": 4000, "by index": 2000},
)


def test_rows_have_intervals_beside_chance() -> None:
    results, differences = TABLE.tables()
    assert results.cells.rows == [
        ["box", "30.0 (26.0…34.0)", "60.0 (56.0…64.0)", "30.0 (26.0…34.0)", "1.0 / 10.0 / 2.0", "4,000", "400"],
        ["by index", "4.0° (0.0…8.0)", "12.0° (8.0…16.0)", "", "1.0 / 10.0 / 2.0", "2,000", "400"],
    ]
    assert differences.cells.rows == [["box", "by index", "+26.0 (+22.0…+30.0)", "+48.0 (+44.0…+52.0)", ""]]
    assert "say nothing of other trainings" in differences.caption


def test_the_page_refers_to_no_other_file(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "hits.png")
    tables = list(TABLE.tables())
    page = retrieval_page([TABLE], tables, ["A note of <5 regions."], tmp_path / "hits.png")
    assert "A note of &lt;5 regions." in page and page.count("<svg") == 1 and "data:image/png;base64," in page
    text = retrieval_markdown(tables, ["A note."])
    assert text.startswith("# Search by region\n\n- A note.\n") and "| by index | 4.0° (0.0…8.0) |" in text
