"""An evaluation set from official files and from shards: the same queries, and the same words on what is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.evaluation_files import make_image, write_scar_set
from fixtures.mmeb_files import write_table
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.evaluation import EvaluationDataModule, ReadSets
from virtue_pl.data.datamodules.mmeb import MMEBDataModule
from virtue_pl.data.datamodules.scar import PublishedSCaRDataModule, SCaRDataModule
from virtue_pl.data.eval_sets.options import EvaluationDataOptions
from virtue_pl.data.eval_sets.plan import EvaluationPlan, make_plan
from virtue_pl.evaluation.reports.left_out import describe_share, name_left_out
from virtue_pl.evaluation.reports.metric_tables import metric_tables
from virtue_pl.evaluation.statistics.averages import averages
from virtue_pl.metrics.ranking import RankRow, RankRows, sample_ranks
from virtue_pl.types import EmbeddingInput, EvaluationRow, RankingSample, VirtueError

Row = dict[str, Any]
SCAR_ROWS: dict[str, tuple[Row, str]] = {
    "gold twice": ({"tgt_text": ["a", "b", "a", "c", "d"]}, ""),
    "gold alone": ({"tgt_text": ["a"]}, ""),
    "nothing but gold": ({"tgt_text": ["a", "a"]}, ""),
    "a distractor twice": ({"tgt_text": ["a", "b", "b", "c", "d"]}, ""),
    "other forms": ({"tgt_text": ["a", "b", "a"], "tgt_text_hard": ["a", "e", "a", "b"]}, ""),
    "a box beyond the image by less than a pixel": ({"bbox": [-0.5, 6.25, 30.0, 41.0]}, ""),
    "a whole box": ({"bbox": [0.0, 0.0, 96.0, 72.0]}, ""),
    "no candidate": ({"tgt_text": []}, "the query has no candidate"),
    "an empty candidate": ({"tgt_text": ["a", "", "c"]}, "missing candidate"),
    "no query": ({"qry_text": ""}, "missing query"),
    "a box outside": ({"bbox": [90.0, 6.0, 30.0, 41.0]}, "box outside the image"),
    "no box": ({"bbox": None}, "no box"),
    "a missing image": ({"qry_image_path": "set/none.png"}, "missing image"),
    "an image elsewhere": ({"qry_image_path": "../../none.png"}, "no image"),
    "no box and no candidate": ({"bbox": None, "tgt_text": []}, "the query has no candidate"),
    "no query and no box": ({"bbox": None, "qry_text": ""}, "missing query"),
}
SHOWN = "<|image_1|>\nRepresent the given image."
IMAGES = {"a": 1, "b": 2, "c": 3, "again": 1}
"""Images by name, with the number of their content."""
MMEB_ROWS: dict[str, tuple[Row, str]] = {
    "gold twice": ({"tgt_text": [SHOWN] * 4, "tgt_img_path": ["a.png", "b.png", "a.png", "c.png"]}, ""),
    "gold under another name": ({"tgt_text": [SHOWN] * 3, "tgt_img_path": ["a.png", "again.png", "c.png"]}, ""),
    "a distractor twice": ({"tgt_text": [SHOWN] * 4, "tgt_img_path": ["a.png", "b.png", "b.png", "c.png"]}, ""),
    "gold alone": ({"tgt_text": [SHOWN], "tgt_img_path": ["a.png"]}, ""),
    "texts, gold twice": ({"tgt_text": ["a", "b", "a"], "tgt_img_path": ["", "", ""]}, ""),
    "a candidate's image missing": ({"tgt_text": [SHOWN] * 2, "tgt_img_path": ["a.png", "none.png"]}, "missing image"),
    "a candidate's image damaged": ({"tgt_text": [SHOWN] * 2, "tgt_img_path": ["a.png", "bad.png"]}, "damaged image"),
    "the query's image missing": ({"qry_img_path": "none.png"}, "missing image"),
    "no candidate": ({"tgt_text": [], "tgt_img_path": []}, "the query has no candidate"),
    "an empty candidate": ({"tgt_text": ["a", ""], "tgt_img_path": ["", ""]}, "missing candidate"),
    "lists of two lengths": ({"tgt_text": ["a", "b"], "tgt_img_path": ["a.png"]}, "candidates do not match"),
    "no query": ({"qry_text": "", "qry_img_path": ""}, "missing query"),
    "a token without an image": ({"qry_img_path": ""}, "image token without an image"),
    "two tokens": ({"qry_text": "<|image_1|><|image_1|> what?"}, "more image tokens than images"),
}


def scar_sources(root: Path, change: Row) -> tuple[Path, Path]:
    """The set ADE20K as official files and as shards: a sound row, the changed one, and two sound ones."""

    def edit(rows: list[Row]) -> None:
        rows[1].update(change)
        if "tgt_text_hard" in change:
            for row in rows:
                row.setdefault("tgt_text_hard", [row["tgt_text"][0], "z"])

    write_scar_set(root, edit=edit)
    (root / "SCaR-eval").mkdir()
    (root / "data/SCaR_eval_ADE20K.parquet").rename(root / "SCaR-eval/SCaR_eval_ADE20K.parquet")
    convert_scar(root, root / "shards", images_per_shard=1)
    (root / "shards").rename(root.with_name("shards"))
    return root, root.with_name("shards")


def mmeb_sources(root: Path, change: Row) -> tuple[Path, Path]:
    (root / "MMEB-eval/images").mkdir(parents=True)
    for name, number in IMAGES.items():
        (root / f"MMEB-eval/images/{name}.png").write_bytes(make_image(number))
    (root / "MMEB-eval/images/bad.png").write_bytes(b"no image")
    rows: list[Row] = [
        {
            "qry_text": f"<|image_1|>\nWhat is {number}?\n",
            "qry_img_path": f"{'abc'[number % 3]}.png",
            "tgt_text": [SHOWN] * 3,
            "tgt_img_path": ["a.png", "b.png", "c.png"],
        }
        for number in range(4)
    ]
    rows[1].update(change)
    write_table(root / "MMEB-eval/NIGHTS/test-00000-of-00001.parquet", rows)
    convert_mmeb(root, root.with_name("shards"), images_per_shard=1)
    return root, root.with_name("shards")


def read(root: Path, name: str, **options: Any) -> ReadSets:
    return EvaluationDataModule(str(root), [name], EvaluationDataOptions(**options)).read_sets()


def plan_of(found: ReadSets) -> EvaluationPlan:
    def query(row: EvaluationRow) -> EmbeddingInput:
        return EmbeddingInput(row.published_text + row.box_words, image_keys=(row.image,) if row.image else ())

    return make_plan(found.rows, query, {key: (72, 96) for key in keys_of(found)}, found.missing, 4, found.left_out)


def keys_of(found: ReadSets) -> set[str]:
    rows = [row for rows in found.rows.values() for row in rows]
    inputs = [item for row in rows for item in row.candidates]
    return {key for item in inputs for key in item.image_keys} | {row.image for row in rows if row.image}


@pytest.mark.parametrize(("sources", "name", "row"), [
    *(pytest.param(scar_sources, "ADE20K", row, id=f"scar, {row}") for row in SCAR_ROWS),
    *(pytest.param(mmeb_sources, "NIGHTS", row, id=f"mmeb, {row}") for row in MMEB_ROWS),
])  # fmt: skip
def test_every_source_gives_the_same_queries(
    tmp_path: Path, sources: Callable[[Path, Row], tuple[Path, Path]], name: str, row: str
) -> None:
    change, reason = (SCAR_ROWS if sources is scar_sources else MMEB_ROWS)[row]
    official, shards = sources(tmp_path / "official", change)
    for limit, rows in ((None, [0, 1, 2, 3]), (2, [0, 1]), (1, [0]), (9, [0, 1, 2, 3])):
        one, two = (read(root, name, allow_missing=True, limit=limit) for root in (official, shards))
        assert one.left_out == two.left_out and one.missing == two.missing == {}
        ((about, ranked),) = one.rows.items()
        assert [found.row for found in ranked] == [number for number in rows if number != 1 or not reason]
        expected = {reason: 1} if reason and 1 in rows else {}
        assert one.left_out.get(about.name, {}) == expected | (
            {"beyond the limit": 4 - len(rows)} if len(rows) < 4 else {}
        )
        assert plan_of(one).fingerprint() == plan_of(two).fingerprint()
        assert [(found.published_text, found.box_words, found.rankings, found.size) for found in ranked] == [
            (found.published_text, found.box_words, found.rankings, found.size) for found in two.rows[about]
        ]
    for root in (official, shards):
        if reason:
            with pytest.raises(VirtueError, match=reason):
                read(root, name)
        else:
            assert not read(root, name).left_out


def ranks(rows: dict[str, tuple[Any, ...]]) -> dict[str, dict[str, tuple[int, int]]]:
    """Rank every row by scores that hang on the candidate alone."""
    samples = [RankingSample(key, "t", EmbeddingInput("q"), *row) for key, row in sorted(rows.items())]
    scores = [torch.tensor([hash_of(item) for item in sample.candidates], dtype=torch.float64) for sample in samples]
    found: dict[str, dict[str, tuple[int, int]]] = {}
    table = sample_ranks(samples, scores)
    for key, ranking, rank, count in zip(
        table.keys, table.rankings, table.ranks.tolist(), table.candidates, strict=True
    ):
        found.setdefault(key, {})[ranking] = (rank, count)
    return found


def hash_of(item: EmbeddingInput) -> float:
    return sum(ord(letter) * (index + 7) for index, letter in enumerate(item.text + "".join(item.image_keys))) % 9973


@pytest.mark.parametrize("row", [row for row, (_, reason) in SCAR_ROWS.items() if not reason])
def test_a_test_that_streams_shards_ranks_as_the_official_files(tmp_path: Path, row: str) -> None:
    official, shards = scar_sources(tmp_path / "official", SCAR_ROWS[row][0])
    check_stream(official, shards, "ADE20K", "SCaR_eval_ADE20K", SCaRDataModule)
    published = {}
    data = PublishedSCaRDataModule(test={"x": str(shards / "SCaR_eval_ADE20K")}, batch_size=2)
    data.connect(Keep())  # type: ignore[arg-type]
    for sample in (sample for batch in data.test_dataloader() for sample in batch):
        published[sample.key.rpartition("/")[2]] = sample.query.text
    ((_, rows),) = read(official, "ADE20K").rows.items()
    assert all(published[str(found.row)].endswith("\n" + found.box_words) for found in rows)


@pytest.mark.parametrize("row", [row for row, (_, reason) in MMEB_ROWS.items() if not reason])
def test_so_does_one_of_mmeb(tmp_path: Path, row: str) -> None:
    official, shards = mmeb_sources(tmp_path / "official", MMEB_ROWS[row][0])
    check_stream(official, shards, "NIGHTS", "MMEB_eval_NIGHTS", MMEBDataModule)


class Keep:
    def collate_eval(self, samples: Any) -> Any:
        return list(samples)


def check_stream(official: Path, shards: Path, name: str, folder: str, module: Any) -> None:
    data = module(test={"x": str(shards / folder)}, batch_size=2)
    data.connect(Keep())
    streamed = {sample.key.rpartition("/")[2]: sample for batch in data.test_dataloader() for sample in batch}
    ((_, rows),) = read(official, name).rows.items()
    assert ranks({key: (sample.candidates, sample.rankings) for key, sample in streamed.items()}) == ranks(
        {str(row.row): (row.candidates, row.rankings) for row in rows}
    )


def tables_of(found: ReadSets) -> dict[str, Any]:
    plan = plan_of(found)
    shares = {name: 0.5 for name in ("precision@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "map@10", "mrr@10")}
    scores = {ranked.about.name: {**shares, "n": len(ranked.rows)} for ranked in plan.sets}
    means = averages(scores, [ranked.about for ranked in plan.sets])
    ranks = RankRows(
        RankRow(f"{ranked.about.benchmark}/{ranked.about.name}", "box", "hit@1", str(row.row), 0, 10, str(row.row))
        for ranked in plan.sets
        for row in ranked.rows
    )
    tables = name_left_out(metric_tables(scores, plan.sets, means, ranks), plan.sets, plan.left_out, means)
    return {table.title: table for table in tables}


@pytest.mark.parametrize("source", [0, 1])
def test_no_mean_stands_beside_a_published_one_without_its_gaps(tmp_path: Path, source: int) -> None:
    root = scar_sources(tmp_path / "official", {"qry_image_path": "set/none.png"})[source]
    tables = tables_of(read(root, "ADE20K", allow_missing=True, limit=3))
    counts = "2 of 4 (1 missing image, 1 beyond the limit)"
    table = tables["scar"].cells
    assert table.columns[-2:] == ["n", "left out"]
    assert [(row[0], row[-1]) for row in table.rows if row[0] != "chance"] == [
        ("SCaR_ADE20K", counts),
        ("mean, all (1 of 5)", counts),
    ]
    caption = tables["scar, beside published results"].caption
    assert caption.endswith(
        "; this run's all is over 1 of 5 sets; left out of SCaR_ADE20K: "
        + counts
        + "; SCaR_ADE20K has 4 queries here, 9,368 as published"
    )


def test_a_whole_set_has_no_column_of_what_is_left_out(tmp_path: Path) -> None:
    official, _ = scar_sources(tmp_path / "official", {})
    assert tables_of(read(official, "ADE20K"))["scar"].cells.columns[-1] == "n"
    assert describe_share({}, 4) == ""


def test_a_set_of_which_no_row_is_left_is_named(tmp_path: Path) -> None:
    for root in scar_sources(tmp_path / "official", {}):
        for path in (tmp_path / "official/images/set").glob("*"):
            path.unlink()
        if root.name == "shards":
            continue
        with pytest.raises(VirtueError, match="SCaR_ADE20K has no rows, expected queries to rank: 4 missing image"):
            read(root, "ADE20K", allow_missing=True)
