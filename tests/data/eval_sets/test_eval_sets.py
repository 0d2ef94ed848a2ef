"""Evaluation sets: their names, their files in every layout, their rows, and the plan of what is embedded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fixtures.evaluation_files import write_mmeb_sets, write_scar_set
from fixtures.official_files import MMEB, SCAR, write_official_mmeb, write_official_scar
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.eval_sets.files import available_sets, find_set, resolve_sets
from virtue_pl.data.eval_sets.images import ImageLibrary
from virtue_pl.data.eval_sets.plan import input_key, make_batches, make_plan
from virtue_pl.data.eval_sets.rows import RowReader, ranked_captions
from virtue_pl.data.eval_sets.shards import shard_rows
from virtue_pl.types import DataError, EmbeddingInput, EvaluationRow, VirtueError, VisualPrompt


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["RefCOCO+", "SCaR_eval_RefCOCO_plus", "scar_refcoco_plus"], ["SCaR_RefCOCO_plus"]),
        (["ImageNet_1K", "MMEB_eval_ImageNet-1K"], ["ImageNet-1K"]),
        (["ADE20K", "NIGHTS"], ["SCaR_ADE20K", "NIGHTS"]),
        (["scar_mini"], ["SCaR_mini_test_seen", "SCaR_mini_test_held_out"]),
    ],
)
def test_a_set_has_many_spellings(names, expected):
    assert [about.name for about in resolve_sets(names)] == expected


def test_there_are_41_sets():
    found = resolve_sets(["scar", "mmeb"])
    assert (
        len(found) == 41
        and sum(about.distribution == "IND" for about in found) == 20
        and sum(about.distribution == "OOD" for about in found) == 16
    )
    assert len(available_sets()) == 41 + 8 + 2


@pytest.mark.parametrize(("names", "message"), [([], "--sets is empty"), (["NIGHT"], "did you mean NIGHTS")])
def test_an_unknown_set_is_refused(names, message):
    with pytest.raises(VirtueError, match=message):
        resolve_sets(names)


def rows_of(root: Path, name: str, form: str | None = None) -> list[EvaluationRow]:
    (about,) = resolve_sets([name])
    files = find_set(root, about, form)
    assert files is not None
    reader = RowReader(ImageLibrary())
    return list(reader.read(files)) if files.shards is None else shard_rows(files, reader)


def said(row: EvaluationRow) -> tuple[object, ...]:
    """Return all that is embedded and ranked."""
    return (
        row.row,
        row.published_text,
        row.box_words,
        row.image,
        [input_key(item) for item in row.candidates],
        row.rankings,
    )


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("official")
    write_official_scar(root)
    return write_official_mmeb(root)


@pytest.mark.parametrize("name", sorted(dataset.eval_folder for dataset in MMEB))
def test_every_set_of_mmeb_is_found_in_both_forms_and_says_the_same(official, name):
    assert [said(row) for row in rows_of(official, name, "instruct")] == [
        said(row) for row in rows_of(official, name, "v1")
    ]
    assert [row.row for row in rows_of(official, name)] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", sorted(dataset.task for dataset in SCAR))
def test_every_set_of_scar_is_found(official, name):
    rows = rows_of(official, name)
    assert len(rows) == 4 and all(row.region is not None and len(row.candidates) == 10 for row in rows)
    assert rows[1].box_words == "Referring object bbox: [2, 2, 7, 7]"


def test_shards_hold_the_same_rows(official, tmp_path):
    convert_scar(official, tmp_path)
    convert_mmeb(official, tmp_path)
    for name in ("ADE20K", "MSCOCO_t2i", "CIRR"):
        assert [said(row) for row in rows_of(tmp_path, name, "v1")] == [
            said(row) for row in rows_of(official, name, "v1")
        ], name
    assert [said(row) for row in rows_of(tmp_path / "SCaR_eval_ADE20K", "ADE20K")] == [
        said(row) for row in rows_of(official, "ADE20K")
    ]


@pytest.mark.parametrize("subfolder", ["", "data", "instruct/OK-VQA", "OK-VQA"])
def test_files_lie_in_any_of_the_layouts(tmp_path, subfolder):
    write_mmeb_sets(tmp_path / "made")
    source = tmp_path / "made/instruct/OK-VQA/test-00000-of-00001.parquet"
    target = (
        tmp_path
        / "root"
        / subfolder
        / ("test-00000-of-00001.parquet" if subfolder.endswith("OK-VQA") else "OK-VQA-00000-of-00001.parquet")
    )
    target.parent.mkdir(parents=True)
    source.rename(target)
    (tmp_path / "made/images").rename(tmp_path / "root/images")
    assert len(rows_of(tmp_path / "root", "OK-VQA")) == 4


def test_a_form_that_is_not_there_is_not_found(tmp_path):
    write_mmeb_sets(tmp_path)
    (tmp_path / "instruct").rename(tmp_path / "elsewhere")
    (about,) = resolve_sets(["NIGHTS"])
    assert find_set(tmp_path, about) is None
    (about,) = resolve_sets(["OK-VQA"])
    assert find_set(tmp_path, about, "instruct") is None and find_set(tmp_path, about, "v1") is not None


def test_candidate_lists_stay_as_they_are():
    captions, rankings = ranked_captions({"tgt_text": ["gold", "b", "gold", "b", "c"]}, "row")
    assert captions == ["gold", "b", "gold", "b", "c"] and rankings == {"hit@1": (0, 1, 3, 4)}
    row = {
        "tgt_text": ["gold", "b"],
        "tgt_text_hard": ["gold", "c", "b"],
        "tgt_kinds_hard": ["gold", "object", "scene"],
    }
    captions, rankings = ranked_captions(row, "row")
    assert captions == ["gold", "b", "c"] and rankings == {
        "hit@1": (0, 1),
        "hit@1_hard": (0, 2, 1),
        "object": (0, 2),
        "scene": (0, 1),
    }
    with pytest.raises(DataError, match="row: another gold caption"):
        ranked_captions({"tgt_text": ["gold", "b"], "tgt_text_hard": ["b", "gold"]}, "row")


def test_equal_inputs_are_one_and_others_are_not():
    box = VisualPrompt(boxes=torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    moved = VisualPrompt(boxes=torch.tensor([[0.1, 0.2, 0.3, 0.5]]))
    inputs = [
        EmbeddingInput("a"),
        EmbeddingInput("b"),
        EmbeddingInput("a", image_keys=("p",)),
        EmbeddingInput("a", image_keys=("p",), prompt=box),
        EmbeddingInput("a", image_keys=("p",), prompt=moved),
        EmbeddingInput(
            "a",
            image_keys=("p",),
            prompt=VisualPrompt(points=box.boxes[:, :2], point_labels=torch.ones(1, dtype=torch.long)),
        ),
    ]
    assert len({input_key(item) for item in inputs}) == len(inputs)
    assert input_key(EmbeddingInput("a", image_keys=("p",), prompt=VisualPrompt(boxes=box.boxes.clone()))) == input_key(
        inputs[3]
    )


def test_batches_keep_an_image_together_and_sort_by_length():
    inputs = [
        EmbeddingInput(text, image_keys=keys)
        for text, keys in (("a", ()), ("bbbb", ("p",)), ("cc", ()), ("d", ("q",)), ("e", ("p",)), ("f", ("p",)))
    ]
    batches = make_batches(inputs, [1, 104, 2, 50, 101, 101], batch_size=2)
    assert batches == ((1, 4, 5), (3,), (2, 0))
    assert sorted(number for batch in batches for number in batch) == list(range(6))


def test_a_plan_is_the_same_every_time_and_changes_with_its_rows(tmp_path):
    prints = set()
    for folder, candidates in (("a", 4), ("b", 4), ("c", 3)):
        write_scar_set(tmp_path / folder, candidates=candidates)
        (about,) = resolve_sets(["ADE20K"])
        reader = RowReader(ImageLibrary())
        rows = list(reader.read(find_set(tmp_path / folder, about)))
        plan = make_plan(
            {about: rows}, lambda row: EmbeddingInput(row.text, image_keys=(row.image,)), reader.library.sizes, {}, 3
        )
        assert plan.total == 4 * (1 + candidates) and plan.images == 2
        prints.add(plan.fingerprint())
    assert len(prints) == 2


def test_images_resized_to_squares_are_other_inputs_of_one_size(tmp_path):
    write_scar_set(tmp_path)
    (about,) = resolve_sets(["ADE20K"])
    plain, resized = (RowReader(ImageLibrary(size)) for size in (None, 1344))
    first, second = (next(reader.read(find_set(tmp_path, about))) for reader in (plain, resized))
    assert first.image != second.image and first.size == second.size == (72, 96)
    assert resized.library.pixels(second.image).shape == (3, 1344, 1344) and resized.library.image(
        second.image
    ).shape == (3, 72, 96)
