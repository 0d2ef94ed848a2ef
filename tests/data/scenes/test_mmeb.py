"""MMEB-mini's rows: what they say, that only the first candidate is right, and that nobody is right without looking."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from virtue_pl.data.scenes import SceneConfig, write_scenes, writer
from virtue_pl.data.scenes.library import TEST, SceneLibrary
from virtue_pl.data.scenes.mmeb.rows import Group, Question
from virtue_pl.data.scenes.mmeb.studio import Studio
from virtue_pl.data.scenes.mmeb.tasks import TASKS, MMEBTask
from virtue_pl.data.scenes.shapes import draw_shapes
from virtue_pl.types import VirtueError

ROWS = 400
CANDIDATES = {
    "ObjectMini": 20,
    "SceneMini": 8,
    "KindMini": 6,
    "CornerMini": 10,
    "CaptionMini_i2t": 12,
    "CaptionMini_t2i": 12,
}
CANDIDATES |= {"GroundingMini": 16, "ReferMini": 16}
TEXT_TASKS = [
    task for task in TASKS if task.name in ("ObjectMini", "SceneMini", "KindMini", "CornerMini", "CaptionMini_i2t")
]
IMAGE_TASKS = [task for task in TASKS if task not in TEXT_TASKS]


@pytest.fixture(scope="module")
def library() -> SceneLibrary:
    return draw_shapes()


@pytest.fixture(scope="module")
def groups(library: SceneLibrary) -> dict[str, list[Group]]:
    """Return about `ROWS` rows of every task."""
    studio = Studio(library, 128, TEST)
    return {
        task.name: [task.draw(np.random.default_rng([7, number]), studio) for number in range(ROWS // task.rows)]
        for task in TASKS
    }


def questions(groups: Sequence[Group]) -> list[Question]:
    return [question for group in groups for question in group.questions]


def name_of(task: MMEBTask) -> str:
    return task.name


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_every_row_is_whole(groups: dict[str, list[Group]], task: MMEBTask) -> None:
    for group in groups[task.name]:
        assert len(group.questions) == task.rows
        used = {question.image for question in group.questions} | {
            answer.image for question in group.questions for answer in question.answers
        }
        assert used - {""} == set(group.images)
        for question in group.questions:
            assert len(set(question.answers)) == len(question.answers) == CANDIDATES[task.name]
            assert question.text.startswith("<|image_1|>\n") == bool(question.image) and question.text.endswith("\n")
            assert all(answer.text.startswith("<|image_1|>\n") == bool(answer.image) for answer in question.answers)


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_every_candidate_of_a_shared_list_is_right_once(groups: dict[str, list[Group]], task: MMEBTask) -> None:
    for group in groups[task.name]:
        right = [question.answers[0] for question in group.questions]
        assert len(set(right)) == len(right)
        if task.rows == CANDIDATES[task.name]:
            assert all(set(question.answers) == set(right) for question in group.questions)


@pytest.mark.parametrize("task", TEXT_TASKS, ids=name_of)
def test_answers_are_spread_evenly(groups: dict[str, list[Group]], task: MMEBTask) -> None:
    """No text is right much more often than it is a candidate."""
    rows = questions(groups[task.name])
    right = Counter(row.answers[0].text for row in rows)
    shown = Counter(answer.text for row in rows for answer in row.answers)
    for text, count in shown.items():
        expected = count / CANDIDATES[task.name]
        assert right[text] <= expected + 5 * expected**0.5 + 2


def hits(rows: Sequence[Question], score: Callable[[Question, int], float]) -> float:
    rng = np.random.default_rng(0)
    found = [
        np.argmax([score(row, index) + 1e-6 * rng.random() for index in range(len(row.answers))]) == 0 for row in rows
    ]
    return float(np.mean(found))


def near_chance(share: float, task: MMEBTask, rows: int) -> bool:
    chance = 1 / CANDIDATES[task.name]
    return share <= chance + 3.5 * (chance * (1 - chance) / rows) ** 0.5


@pytest.mark.parametrize("task", TEXT_TASKS, ids=name_of)
def test_words_hardly_tell_the_right_answer(groups: dict[str, list[Group]], task: MMEBTask) -> None:
    """Log-odds of words, and of words beside the question, fitted on half of the rows, choose on the other half."""
    rows = questions(groups[task.name])
    fit, test = rows[: len(rows) // 2], rows[len(rows) // 2 :]

    def features(row: Question, index: int) -> list[str]:
        answer_words = row.answers[index].text.split()
        return [*answer_words, *(f"{row.text}|{word}" for word in answer_words)]

    right = Counter(word for row in fit for word in features(row, 0))
    wrong = Counter(word for row in fit for index in range(1, len(row.answers)) for word in features(row, index))
    odds = CANDIDATES[task.name] - 1
    weights = {word: float(np.log((right[word] + 1) / (wrong[word] + odds))) for word in right | wrong}
    assert near_chance(
        hits(test, lambda row, index: sum(weights.get(word, 0.0) for word in features(row, index))), task, len(test)
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("task", TEXT_TASKS, ids=name_of)
def test_the_set_hardly_tells_the_right_answer(groups: dict[str, list[Group]], task: MMEBTask, sign: int) -> None:
    """What shares most (or fewest) words with the other candidates is right about as often as any."""
    rows = questions(groups[task.name])

    def score(row: Question, index: int) -> float:
        others = Counter(
            word for other, answer in enumerate(row.answers) for word in answer.text.split() if other != index
        )
        return sign * sum(others[word] for word in row.answers[index].text.split())

    assert near_chance(hits(rows, score), task, len(rows))


def test_no_distractor_is_true(groups: dict[str, list[Group]], library: SceneLibrary) -> None:
    kinds = {thing.name: thing.kind for thing in library.things} | {
        background.phrase: background.kind for background in library.backgrounds
    }
    for name in ("ObjectMini", "SceneMini", "KindMini", "CornerMini"):
        for row in questions(groups[name]):
            assert len({kinds[answer.text] for answer in row.answers}) == len(row.answers)
    for row in questions(groups["CaptionMini_i2t"]):
        said = {
            (
                frozenset(answer.text.partition(", ")[0].removeprefix("a ").split(" and ")),
                answer.text.partition(", ")[2],
            )
            for answer in row.answers
        }
        assert len(said) == len(row.answers)


def test_the_question_is_of_the_category(groups: dict[str, list[Group]], library: SceneLibrary) -> None:
    categories = {thing.name: thing.category for thing in library.things}
    for row in questions(groups["KindMini"]):
        asked = row.text.partition("What ")[2].partition(" is in the picture?")[0]
        assert {categories[answer.text] for answer in row.answers} == {asked}


def test_grounding_offers_the_same_objects_of_other_images_and_others_of_the_same(
    groups: dict[str, list[Group]],
) -> None:
    for name in ("GroundingMini", "ReferMini"):
        for group in groups[name]:
            for row in group.questions:
                assert row.answers[0].image.startswith(f"{row.image}_crop")
                assert sum(answer.image.startswith(f"{row.image}_crop") for answer in row.answers) == 4
            for crop in (name for name in group.images if "crop" in name):
                assert min(group.images[crop].size) >= 8


def test_expressions_name_two_objects_and_where(groups: dict[str, list[Group]]) -> None:
    for row in questions(groups["ReferMini"]):
        said = row.text.partition('"')[2].rpartition('"')[0]
        assert said.startswith("the ") and any(
            relation in said for relation in (" to the left of a", " to the right of a", " above a", " below a")
        )


CONFIG = SceneConfig(source="shapes", train=2, val=2, test=2, size=128, seed=3, mmeb_train=10, mmeb_test=18)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mmeb") / "set"
    write_scenes(CONFIG, out)
    return out


def contents(root: Path) -> dict[str, bytes]:
    """Everything that should not depend on how it was written."""
    images = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.jpg")}
    return images | {
        str(path.relative_to(root)): json.dumps(pq.read_table(path).to_pylist()).encode()
        for path in root.rglob("*.parquet")
    }


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_layout_and_columns(root: Path, task: MMEBTask) -> None:
    train = pq.read_table(root / f"MMEB-train/{task.name}/original-00000-of-00001.parquet")
    assert (
        train.column_names == ["qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path"]
        and train.num_rows == 10
    )
    test = pq.read_table(root / f"MMEB-eval/{task.name}/test-00000-of-00001.parquet")
    assert test.column_names == ["qry_text", "qry_img_path", "tgt_text", "tgt_img_path"] and test.num_rows == 18
    for row in train.to_pylist():
        assert len(row["neg_text"]) == len(row["neg_image_path"]) == 4
        for path in filter(None, [row["qry_image_path"], row["pos_image_path"], *row["neg_image_path"]]):
            assert path.startswith(f"images/{task.name}/Train/") and (root / path).is_file()
    for row in test.to_pylist():
        for path in filter(None, [row["qry_img_path"], *row["tgt_img_path"]]):
            with Image.open(root / "images" / path) as image:
                assert path.startswith(f"{task.name}/Test/") and image.format == "JPEG"


def test_what_the_set_says_of_itself(root: Path) -> None:
    said = json.loads((root / "scenes.json").read_text())
    assert said["mmeb"]["tasks"].keys() == {task.name for task in TASKS} and said["config"]["mmeb_test"] == 18
    assert Counter(task["meta_task"] for task in said["mmeb"]["tasks"].values()) == dict.fromkeys(
        ("classification", "vqa", "retrieval", "grounding"), 2
    )


def test_workers_blocks_and_stops_change_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK", 4)
    write_block, written = writer.write_block, []

    def failing(block: writer.Block, *rest: object) -> None:
        if len(written) == 9:
            raise KeyboardInterrupt
        write_block(block, *rest)  # type: ignore[arg-type]
        written.append(block)

    monkeypatch.setattr(writer, "write_block", failing)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(CONFIG, tmp_path / "set")
    monkeypatch.setattr(writer, "write_block", write_block)
    write_scenes(CONFIG, tmp_path / "set", workers=2)
    assert contents(tmp_path / "set") == contents(root)


def test_scenes_are_the_same_with_and_without_mmeb(root: Path, tmp_path: Path) -> None:
    without = SceneConfig(source="shapes", train=2, val=2, test=2, size=128, seed=3)
    write_scenes(without, tmp_path / "set")
    alone, both = contents(tmp_path / "set"), contents(root)
    assert alone.items() <= both.items() and not any("MMEB" in name for name in alone)
    assert "mmeb_train" not in writer.settings_of(without) and writer.fingerprint(without) != writer.fingerprint(CONFIG)
    with pytest.raises(VirtueError, match="mmeb_train 10, wanted 0; mmeb_test 18, wanted 0"):
        write_scenes(without, root)
    with pytest.raises(VirtueError, match="mmeb_test -1, expected a count of 0 or more"):
        SceneConfig(mmeb_test=-1)
