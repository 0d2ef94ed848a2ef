from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from virtue_pl.data.scenes.captions import (
    PUBLISHED_KINDS,
    TEMPLATES,
    Claim,
    Situation,
    Vocabulary,
    balanced_claims,
    negative_claims,
    published_claims,
    with_article,
)
from virtue_pl.data.scenes.catalogue import backgrounds, objects
from virtue_pl.data.scenes.layout import RELATIONS
from virtue_pl.data.scenes.library import HELD_OUT, TRAIN, SceneLibrary
from virtue_pl.data.scenes.shapes import draw_shapes


@pytest.fixture(scope="module")
def library() -> SceneLibrary:
    return draw_shapes()


def draw_situation(
    rng: np.random.Generator, library: SceneLibrary, targets: str = TRAIN
) -> tuple[Situation, Vocabulary]:
    """As a scene would have it, without the image."""
    pool, train = library.of_split(targets), library.of_split(TRAIN)
    first, second = (pool[index] for index in rng.permutation(len(pool))[:2])
    rest = [thing for thing in (train[index] for index in rng.permutation(len(train))) if thing not in (first, second)][
        :3
    ]
    relation, background = (
        RELATIONS[int(rng.integers(4))],
        library.backgrounds[int(rng.integers(len(library.backgrounds)))],
    )
    return Situation(Claim(first, relation, rest[0], background), [second, *rest[1:]]), Vocabulary(
        pool, library.backgrounds
    )


def rows(library: SceneLibrary, count: int, targets: str = TRAIN) -> list[tuple[Situation, list[Claim]]]:
    rng = np.random.default_rng(0)
    drawn = [draw_situation(rng, library, targets) for _ in range(count)]
    return [(situation, balanced_claims(rng, situation, vocabulary)) for situation, vocabulary in drawn]


def is_false(claim: Claim, gold: Claim) -> bool:
    """False of the gold's image and box: another thing, another relation to the same reference, or another scene."""
    assert claim.reference is gold.reference and claim.thing is not gold.reference
    other_kind = claim.thing.kind != gold.thing.kind
    return other_kind or claim.relation != gold.relation or claim.background.kind != gold.background.kind


@pytest.mark.parametrize("targets", [TRAIN, HELD_OUT])
def test_distractors_are_false_and_distinct(library: SceneLibrary, targets: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        situation, vocabulary = draw_situation(rng, library, targets)
        gold = situation.gold
        evaluation = [form(rng, situation, vocabulary) for form in (balanced_claims, published_claims)]
        for claims in evaluation:
            assert len(claims) == 10 and claims[0] == gold
        negatives = negative_claims(rng, situation, vocabulary)
        assert len(negatives) == 10
        for claims in (evaluation[0][1:], evaluation[1][1:], negatives):
            assert all(is_false(claim, gold) for claim in claims)
            assert all(claim.thing in vocabulary.things for claim in claims)
            assert (
                len({claim.sentence(TEMPLATES[0]) for claim in claims} | {gold.sentence(TEMPLATES[0])})
                == len(claims) + 1
            )


def test_published_swaps_one_element_each(library: SceneLibrary) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        situation, vocabulary = draw_situation(rng, library)
        gold, claims = situation.gold, published_claims(rng, situation, vocabulary)
        for claim, kind in zip(claims, PUBLISHED_KINDS, strict=True):
            changed = {
                "object": claim.thing is not gold.thing,
                "relation": claim.relation != gold.relation,
                "scene": claim.background is not gold.background,
            }
            assert [name for name, differs in changed.items() if differs] == ([] if kind == "gold" else [kind])
        assert claims[1].thing in situation.others
        assert {claim.relation for claim in claims[4:7]} == set(RELATIONS) - {gold.relation}


def test_held_out_swaps_come_from_held_out_names(library: SceneLibrary) -> None:
    for situation, claims in rows(library, 100, HELD_OUT):
        assert {claim.thing.split for claim in claims} == {HELD_OUT}
        assert situation.gold.reference.split == TRAIN


def test_words_hardly_tell_the_gold(library: SceneLibrary) -> None:
    """Log-odds of words in true against false captions, fitted on half of the rows, choose on the other half."""
    drawn = [[claim.sentence(TEMPLATES[0]).split() for claim in claims] for _, claims in rows(library, 4000)]
    fit, test = drawn[:2000], drawn[2000:]
    true = Counter(word for claims in fit for word in claims[0])
    false = Counter(word for claims in fit for caption in claims[1:] for word in caption)
    score = {word: np.log((true[word] + 1) / (false[word] + 9)) for word in true | false}
    hits = [np.argmax([sum(score.get(word, 0.0) for word in caption) for caption in claims]) == 0 for claims in test]
    assert np.mean(hits) <= 0.14


def element_vectors(claims: list[Claim]) -> np.ndarray:
    names = sorted({name for claim in claims for name in (claim.thing.name, claim.relation, claim.background.phrase)})
    return np.asarray(
        [[name in (claim.thing.name, claim.relation, claim.background.phrase) for name in names] for claim in claims],
        dtype=float,
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_the_set_hardly_tells_the_gold(library: SceneLibrary, sign: int) -> None:
    """Choosing what is nearest to (or farthest from) the mean of the others is right about once in eight, ties broken
    at random.
    """
    rng, hits = np.random.default_rng(1), []
    for _, claims in rows(library, 3000):
        vectors = element_vectors(claims)
        others = (vectors.sum(axis=0) - vectors) / 9
        score = sign * (vectors * others).sum(axis=1) + 1e-6 * rng.random(10)
        hits.append(score.argmax() == 0)
    assert np.mean(hits) <= 0.145


def test_articles_fit_every_name() -> None:
    assert with_article("orca") == "an orca" and with_article("pair of scissors") == "a pair of scissors"
    for name in {entry.name for entry in objects()}:
        assert not name.lower().startswith(("a ", "an ", "the ", "u", "eu", "one", "hour", "honest"))


def test_the_catalogue_is_consistent() -> None:
    listed: dict[str, tuple[str, str, str]] = {}
    for entry in objects():
        assert listed.setdefault(entry.name, (entry.category, entry.kind, entry.split)) == (
            entry.category,
            entry.kind,
            entry.split,
        )
        assert entry.split in ("train", "held_out")
    assert len({entry.sha256 for entry in objects()}) == len(objects()) > 250
    assert 55 <= sum(split == "held_out" for _, _, split in listed.values()) <= 75
    held_out, train = (
        {category for category, _, split in listed.values() if split == wanted} for wanted in ("held_out", "train")
    )
    assert len(held_out & train) >= 8


def test_every_scene_phrase_is_learnt_in_training() -> None:
    train = {entry.phrase for entry in backgrounds() if entry.split == "train"}
    assert {entry.phrase for entry in backgrounds()} == train and len(train) >= 20
    assert len({entry.sha256 for entry in backgrounds()}) == len(backgrounds())
