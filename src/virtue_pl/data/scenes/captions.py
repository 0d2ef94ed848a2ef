"""Captions of a target in its scene: the true one, and those that are false of this image and this box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import numpy as np

from virtue_pl.data.scenes.layout import RELATIONS
from virtue_pl.data.scenes.library import Background, Thing

TEMPLATES = (
    "{object} {relation} {reference}, {phrase}",
    "{object} that is {relation} {reference}, {phrase}",
    "{phrase}, {object} {relation} {reference}",
)
"""A sample's captions share one of these."""

PUBLISHED_KINDS = ("gold", *["object"] * 3, *["relation"] * 3, *["scene"] * 3)

Named = TypeVar("Named", Thing, Background)


@dataclass(frozen=True)
class Claim:
    """What a caption says: `thing` is `relation` the `reference`, at `place`."""

    thing: Thing
    relation: str
    reference: Thing
    place: Background

    def sentence(self, template: str) -> str:
        return template.format(
            object=with_article(self.thing.name),
            relation=self.relation,
            reference=with_article(self.reference.name),
            phrase=self.place.phrase,
        )


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What swaps are drawn from: `things` to take the target's part, every scene phrase."""

    things: Sequence[Thing]
    places: Sequence[Background]


@dataclass(frozen=True, eq=False)
class Situation:
    """A true claim, and what else is in the image (the reference left out)."""

    gold: Claim
    others: Sequence[Thing]


def with_article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def balanced(rng: np.random.Generator, situation: Situation, vocabulary: Vocabulary) -> list[Claim]:
    """Ten claims, the true one first: the eight corners of object x relation x scene, and two made from any of the
    corners.

    Nothing in the set depends on which corner is true, so whoever sees only the captions is right at most once in
    eight.
    Every false claim has an element that is false by itself.
    """
    gold = situation.gold
    things = [gold.thing, *_other_things(rng, situation, vocabulary, 2)]
    relations = [gold.relation, *_other_relations(rng, gold.relation)]
    places = [gold.place, *distinct_kinds(rng, vocabulary.places, [gold.place], 2)]
    corners = [
        Claim(thing, relation, gold.reference, place)
        for thing, relation, place in product(things[:2], relations[:2], places[:2])
    ]
    changes = [{"thing": things[2]}, {"relation": relations[2]}, {"place": places[2]}]
    extras = [replace(corners[rng.integers(8)], **changes[change]) for change in rng.permutation(3)[:2]]
    return [corners[0], *_shuffled(rng, [*corners[1:], *extras])]


def published(rng: np.random.Generator, situation: Situation, vocabulary: Vocabulary) -> list[Claim]:
    """Ten claims in the published benchmark's form, in the order of `PUBLISHED_KINDS`: three swaps of each single
    element.

    The first object swap is in the image, the other two are not.
    """
    gold = situation.gold
    present = _choose(rng, _candidates(situation, vocabulary), 1)
    things = [
        *present,
        *distinct_kinds(rng, vocabulary.things, [gold.thing, gold.reference, *situation.others], 3 - len(present)),
    ]
    return [
        gold,
        *(replace(gold, thing=thing) for thing in things),
        *(replace(gold, relation=relation) for relation in _other_relations(rng, gold.relation)),
        *(replace(gold, place=place) for place in distinct_kinds(rng, vocabulary.places, [gold.place], 3)),
    ]


def hard_negatives(rng: np.random.Generator, situation: Situation, vocabulary: Vocabulary) -> list[Claim]:
    """Ten false claims for training: the seven false corners of `balanced`, the two other relations, one more
    object.
    """
    gold = situation.gold
    things = [gold.thing, *_other_things(rng, situation, vocabulary, 2)]
    relations = [gold.relation, *_other_relations(rng, gold.relation)]
    places = [gold.place, *distinct_kinds(rng, vocabulary.places, [gold.place], 1)]
    corners = [
        Claim(thing, relation, gold.reference, place)
        for thing, relation, place in product(things[:2], relations[:2], places)
    ]
    singles = [replace(gold, relation=relation) for relation in relations[2:]]
    return _shuffled(rng, [*corners[1:], *singles, replace(gold, thing=things[2])])


def _candidates(situation: Situation, vocabulary: Vocabulary) -> list[Thing]:
    """Things in the image that may take the target's part."""
    return [thing for thing in situation.others if thing in vocabulary.things]


def _other_things(rng: np.random.Generator, situation: Situation, vocabulary: Vocabulary, count: int) -> list[Thing]:
    """Things that are not the target, first those in the image."""
    present = _choose(rng, _candidates(situation, vocabulary), count)
    return [
        *present,
        *distinct_kinds(
            rng,
            vocabulary.things,
            [situation.gold.thing, situation.gold.reference, *situation.others],
            count - len(present),
        ),
    ]


def _other_relations(rng: np.random.Generator, relation: str) -> list[str]:
    return _shuffled(rng, [other for other in RELATIONS if other != relation])


def distinct_kinds(rng: np.random.Generator, pool: Sequence[Named], taken: Sequence[Named], count: int) -> list[Named]:
    """Members of `pool` of kinds that are not `taken`, each of another kind."""
    kinds = {member.kind for member in taken}
    chosen: list[Named] = []
    for index in rng.permutation(len(pool)):
        if len(chosen) == count:
            break
        if pool[index].kind not in kinds:
            kinds.add(pool[index].kind)
            chosen.append(pool[index])
    return chosen


T = TypeVar("T")


def _choose(rng: np.random.Generator, items: Sequence[T], count: int) -> list[T]:
    return _shuffled(rng, items)[:count]


def _shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    return [items[index] for index in rng.permutation(len(items))]
