from __future__ import annotations

import numpy as np
import pytest

from virtue_pl.data.scenes.layout import OVERLAP, RELATIONS, Layout, draw_layout, relation_between

IMAGE_SIZE = 256


def draw_sizes(rng: np.random.Generator) -> list[tuple[float, float]]:
    sides, stretch = rng.uniform(41, 69, size=5), np.exp(rng.normal(0, 0.15, size=5))
    return list(zip((sides * stretch).tolist(), (sides / stretch).tolist(), strict=True))


@pytest.fixture(scope="module")
def layouts() -> list[Layout]:
    rng = np.random.default_rng(0)
    drawn = [draw_layout(rng, draw_sizes(rng), IMAGE_SIZE) for _ in range(1700)]
    return [layout for layout in drawn if layout is not None]


def test_most_sizes_find_a_layout(layouts: list[Layout]) -> None:
    assert len(layouts) > 1500


def test_relations_hold_and_boxes_hardly_overlap(layouts: list[Layout]) -> None:
    for layout in layouts[:300]:
        for target in range(2):
            assert relation_between(layout.boxes[target], layout.boxes[target + 2]) == layout.relations[target]
        for index, box in enumerate(layout.boxes):
            assert (
                box.x >= 0
                and box.y >= 0
                and box.x + box.width <= IMAGE_SIZE + 1e-6
                and box.y + box.height <= IMAGE_SIZE + 1e-6
            )
            for other in layout.boxes[:index]:
                width = min(box.x + box.width, other.x + other.width) - max(box.x, other.x)
                height = min(box.y + box.height, other.y + other.height) - max(box.y, other.y)
                common = max(width, 0) * max(height, 0)
                assert common <= OVERLAP * min(box.width * box.height, other.width * other.height) + 1e-6


def nearest_rows_accuracy(features: np.ndarray, answers: np.ndarray, count: int = 25) -> float:
    """How often the commonest relation among the nearest rows of the first half is right on the second."""
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    half = len(features) // 2
    distances = ((features[half:, None] - features[None, :half]) ** 2).sum(axis=-1)
    nearest = answers[:half][np.argpartition(distances, count, axis=1)[:, :count]]
    votes = np.stack([(nearest == relation).sum(axis=1) for relation in range(4)], axis=1)
    return float((votes.argmax(axis=1) == answers[half:]).mean())


def linear_accuracy(features: np.ndarray, answers: np.ndarray) -> float:
    """Return the same for a least-squares classifier on the features, their squares and products."""
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    products = np.einsum("na,nb->nab", features, features).reshape(len(features), -1)
    design = np.concatenate([np.ones((len(features), 1)), features, products], axis=1)
    half = len(design) // 2
    weights = np.linalg.lstsq(design[:half], np.eye(4)[answers[:half]], rcond=None)[0]
    return float(((design[half:] @ weights).argmax(axis=1) == answers[half:]).mean())


def test_a_box_says_nothing_of_its_relation(layouts: list[Layout]) -> None:
    boxes = np.asarray([layout.boxes[target] for target in range(2) for layout in layouts])
    answers = np.asarray([RELATIONS.index(layout.relations[target]) for target in range(2) for layout in layouts])
    order = np.random.default_rng(1).permutation(len(boxes))
    assert len(boxes) > 3000
    assert nearest_rows_accuracy(boxes[order], answers[order]) < 0.30
    assert linear_accuracy(boxes[order], answers[order]) < 0.30


def test_the_other_target_says_nothing_of_a_relation(layouts: list[Layout]) -> None:
    both = np.asarray([[*layout.boxes[0], *layout.boxes[1]] for layout in layouts])
    answers = np.asarray([RELATIONS.index(layout.relations[0]) for layout in layouts])
    assert nearest_rows_accuracy(both, answers) < 0.31
    assert linear_accuracy(both, answers) < 0.31


def test_unclear_pairs_have_no_relation() -> None:
    assert relation_between((0, 0, 40, 40), (100, 10, 40, 40)) == "to the left of"
    assert relation_between((0, 0, 40, 40), (10, 100, 40, 40)) == "above"
    assert relation_between((0, 0, 40, 40), (100, 100, 40, 40)) is None
    assert relation_between((0, 0, 40, 40), (20, 0, 40, 40)) is None


def test_things_too_large_find_no_room() -> None:
    assert draw_layout(np.random.default_rng(0), [(150.0, 150.0)] * 4, IMAGE_SIZE) is None
