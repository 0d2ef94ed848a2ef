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
"""Templates of captions; all of a sample's captions share one."""

PUBLISHED_KINDS = ("gold", *["object"] * 3, *["relation"] * 3, *["scene"] * 3)

Named = TypeVar("Named", Thing, Background)


@dataclass(frozen=True)
class Claim:
    """The content of a caption: `thing` is `relation` the `reference`, on `background`.

    Example:
        >>> fox, hen = Thing("fox", "fox", "train", ()), Thing("owl", "owl", "train", ())
        >>> claim = Claim(fox, "above", hen, Background("on a beach", "beach", ()))
        >>> claim.sentence(TEMPLATES[0])
        'a fox above an owl, on a beach'
    """

    thing: Thing
    relation: str
    reference: Thing
    background: Background

    def sentence(self, template: str) -> str:
        """Return the claim as a caption."""
        return template.format(
            object=with_article(self.thing.name),
            relation=self.relation,
            reference=with_article(self.reference.name),
            phrase=self.background.phrase,
        )


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The things and backgrounds that swaps are drawn from; `things` may replace the target.

    Example:
        >>> Vocabulary(library.of_split("train"), library.backgrounds)  # doctest: +SKIP
    """

    things: Sequence[Thing]
    backgrounds: Sequence[Background]


@dataclass(frozen=True, eq=False)
class Situation:
    """A true claim, and the other things in the image (without the reference).

    Example:
        >>> fox, owl = Thing("fox", "fox", "train", ()), Thing("owl", "owl", "train", ())
        >>> Situation(Claim(fox, "above", owl, Background("on a beach", "beach", ())), others=[]).gold.relation
        'above'
    """

    gold: Claim
    others: Sequence[Thing]


def with_article(name: str) -> str:
    """Return a name behind its indefinite article."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def balanced_claims(rng: np.random.Generator, situation: Situation, vocabulary: Vocabulary) -> list[Claim]:
    """Return ten claims, the true one first.

    They are the eight corners of object x relation x scene, and two made from a corner.

    Nothing in the set depends on which corner is true, so a guess from the captions alone is right at most once in
    eight. Every false claim has an element that is false by itself.
    """
    gold = situation.gold
    things = [gold.thing, *_other_things(rng, situation, vocabulary, 2)]
    relations = [gold.relation, *_other_relations(rng, gold.relation)]
    backgrounds = [gold.background, *distinct_kinds(rng, vocabulary.backgrounds, [gold.background], 2)]
    corners = [
        Claim(thing, relation, gold.reference, background)
        for thing, relation, background in product(things[:2], relations[:2], backgrounds[:2])
    ]
    changes = [{"thing": things[2]}, {"relation": relations[2]}, {"background": backgrounds[2]}]
    extras = [replace(corners[rng.integers(8)], **changes[change]) for change in rng.permutation(3)[:2]]
    return [corners[0], *_shuffle(rng, [*corners[1:], *extras])]


def published_claims(rng: np.random.Generator, situation: Situation, vocabulary: Vocabulary) -> list[Claim]:
    """Return ten claims in the published benchmark's form.

    They are three swaps of each element, in the order of `PUBLISHED_KINDS`.

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
        *(
            replace(gold, background=background)
            for background in distinct_kinds(rng, vocabulary.backgrounds, [gold.background], 3)
        ),
    ]


def negative_claims(rng: np.random.Generator, situation: Situation, vocabulary: Vocabulary) -> list[Claim]:
    """Return ten false claims for training.

    They are the seven false corners of `balanced_claims`, the two other relations, and one more object.
    """
    gold = situation.gold
    things = [gold.thing, *_other_things(rng, situation, vocabulary, 2)]
    relations = [gold.relation, *_other_relations(rng, gold.relation)]
    backgrounds = [gold.background, *distinct_kinds(rng, vocabulary.backgrounds, [gold.background], 1)]
    corners = [
        Claim(thing, relation, gold.reference, background)
        for thing, relation, background in product(things[:2], relations[:2], backgrounds)
    ]
    singles = [replace(gold, relation=relation) for relation in relations[2:]]
    return _shuffle(rng, [*corners[1:], *singles, replace(gold, thing=things[2])])


def _candidates(situation: Situation, vocabulary: Vocabulary) -> list[Thing]:
    """Return the things in the image that may replace the target."""
    return [thing for thing in situation.others if thing in vocabulary.things]


def _other_things(rng: np.random.Generator, situation: Situation, vocabulary: Vocabulary, count: int) -> list[Thing]:
    """Return `count` things that are not the target, those in the image first."""
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
    return _shuffle(rng, [other for other in RELATIONS if other != relation])


def distinct_kinds(
    rng: np.random.Generator, pool: Sequence[Named], excluded: Sequence[Named], count: int
) -> list[Named]:
    """Return up to `count` members of `pool`, in random order, all of different kinds.

    None is of a kind in `excluded`.
    """
    kinds = {member.kind for member in excluded}
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
    return _shuffle(rng, items)[:count]


def _shuffle(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    return [items[index] for index in rng.permutation(len(items))]
