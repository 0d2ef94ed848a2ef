"""Whether an embedding means the region, and not the variant it was pointed at: a box, a click, a mask, the model's own mask of the box."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import box_iou

from virtue_pl.evaluation.robustness import Embed
from virtue_pl.evaluation.tables import Grid, Titled
from virtue_pl.images import pixel_key
from virtue_pl.parts.preprocess import evaluation_query
from virtue_pl.types import EmbeddingInput, RankingSample, VisualPrompt

CAPTION = "instead of the box; nearer: to the box of the same region than any other region of the picture"
Masks = Callable[[Sequence[EmbeddingInput]], Sequence[Bool[Tensor, "height width"]] | None]
"""What the model takes each input's prompt for, as `Embedder.masks` gives it; None from a model that predicts no masks."""
PROMPT_VARIANTS = ("point", "mask", "own_mask", "filled_box")
"""Beside the box: a click inside, the annotated mask, what the model predicts for the box, and the box as a mask."""
SAME_REGION_IOU = 0.5
"""Two boxes that overlap (IoU) by more are of one region."""
BOX_MASK_SIDE = 64
"""Side of a box_mask box's mask over the whole picture, in pixels."""

PromptedQuery = tuple[int, str]
"""A sample's place, and the variant that it is pointed at."""


@dataclass
class Tally:
    """Of one variant. nearer: to the box of the same region than any other region is. same, other: cosines to the box, of the nearest other, summed."""

    n: int = 0
    nearer: int = 0
    same: float = 0.0
    other: float = 0.0


@dataclass
class PromptConsistency:
    """Tallies by task and variant; `alone` counts samples with no other region on their picture, which are left out."""

    tallies: dict[str, dict[str, Tally]] = field(default_factory=dict)
    without_other_region: int = 0

    def as_json(self) -> dict[str, Any]:
        """task -> variant -> {n, nearer, same, other}, all but n divided by n."""
        return {task: {variant: mean_tally(variants[variant]) for variant in PROMPT_VARIANTS if variant in variants} for task, variants in sorted(self.tallies.items())}


def mean_tally(tally: Tally) -> dict[str, float]:
    return {name: value if name == "n" else value / tally.n for name, value in asdict(tally).items()}


def prompt_consistency(embed: Embed, samples: Iterable[RankingSample], masks: Masks | None = None) -> PromptConsistency:
    """Points at every region in each variant, and asks whether its box is nearer to that than to any other region of the picture, pointed at in
    that variant or with its box.

    Samples of one picture are expected to follow each other, as shards have them. The cosines contain what a recipe says of a box in words.
    """
    found = PromptConsistency()
    for _, together in groupby((sample for sample in samples if sample.region is not None), key=picture_key):
        shown = list(together)
        others = [[place for place in range(len(shown)) if regions_differ(sample, shown[place])] for sample in shown]
        found.without_other_region += sum(not of for of in others)
        if any(others):
            update_tallies(found, shown, others, embed_variants(shown, embed, masks))
    return found


def picture_key(sample: RankingSample) -> str:
    query = sample.query
    return query.image_keys[0] if query.image_keys else pixel_key(query.images[0])


def regions_differ(first: RankingSample, second: RankingSample) -> bool:
    """Whether two samples are about different regions."""
    assert first.region is not None and second.region is not None
    return bool(box_iou(first.region.box[None].float(), second.region.box[None].float()) < SAME_REGION_IOU)


def embed_variants(samples: Sequence[RankingSample], embed: Embed, masks: Masks | None) -> dict[PromptedQuery, Float[Tensor, " dim"]]:
    """Each sample's query with its box and in every variant that there is data for."""
    boxes = [evaluation_query(sample, "box") for sample in samples]
    own = masks(boxes) if masks is not None else None
    asked = {(place, "box"): query for place, query in enumerate(boxes)}
    for place, sample in enumerate(samples):
        asked |= {(place, variant): query for variant, query in prompt_variants(sample, None if own is None else own[place])}
    return dict(zip(asked, embed(list(asked.values())), strict=True))


def prompt_variants(sample: RankingSample, own: Bool[Tensor, "height width"] | None) -> Iterator[tuple[str, EmbeddingInput]]:
    """The query pointed at without its box."""
    assert sample.region is not None
    yield "point", evaluation_query(sample, "point")
    if sample.region.mask is not None:
        yield "mask", evaluation_query(sample, "mask")
    for variant, mask in (("own_mask", own), ("filled_box", box_mask(sample.region.box))):
        if mask is not None and mask.any():
            yield variant, replace(sample.query, prompt=VisualPrompt(masks=mask[None].cpu()), further_prompts=())


def box_mask(box: Float[Tensor, "4"]) -> Bool[Tensor, "height width"]:
    """The box as a mask over the whole picture: the pixels whose centres it holds."""
    centres = (torch.arange(BOX_MASK_SIDE) + 0.5) / BOX_MASK_SIDE
    x1, y1, x2, y2 = box.tolist()
    return ((centres >= y1) & (centres <= y2))[:, None] & ((centres >= x1) & (centres <= x2))


def update_tallies(found: PromptConsistency, samples: Sequence[RankingSample], others: Sequence[Sequence[int]], embeddings: dict[PromptedQuery, Float[Tensor, " dim"]]) -> None:
    for place, sample in enumerate(samples):
        for variant in PROMPT_VARIANTS if others[place] else ():
            if (place, variant) not in embeddings:
                continue
            box = embeddings[place, "box"]
            rivals = [embeddings[rival] for other in others[place] for rival in ((other, "box"), (other, variant)) if rival in embeddings]
            same, nearest = float(box @ embeddings[place, variant]), max(float(box @ rival) for rival in rivals)
            tally = found.tallies.setdefault(sample.task, {}).setdefault(variant, Tally())
            tally.n += 1
            tally.nearer += same > nearest
            tally.same += same
            tally.other += nearest


def prompt_consistency_tables(found: PromptConsistency) -> list[Titled]:
    """One table a task, the variants down."""
    columns = ["instead", "nearer, %", "cosine", "of the nearest other", "n"]
    return [Titled(f"{task}, other prompts of a region", Grid(columns, [*lines(variants)], set()), CAPTION) for task, variants in found.as_json().items()]


def lines(variants: dict[str, dict[str, float]]) -> Iterator[list[str]]:
    for variant, row in variants.items():
        yield [variant.replace("_", " "), f"{100 * row['nearer']:.1f}", f"{row['same']:.3f}", f"{row['other']:.3f}", str(row["n"])]
