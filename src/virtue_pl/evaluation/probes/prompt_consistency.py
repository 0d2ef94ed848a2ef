"""Consistency over prompts of a region: its box, a click, its mask, or the model's own mask of the box."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import box_iou

from virtue_pl.evaluation.probes.robustness import Embed, WithPrompt, replace_prompt
from virtue_pl.preprocessing.contrastive_collator import evaluation_query
from virtue_pl.preprocessing.images import pixel_key
from virtue_pl.types import EmbeddingInput, RankingSample, VisualPrompt

Masks = Callable[[Sequence[EmbeddingInput]], Sequence[Bool[Tensor, "height width"]] | None]
"""Returns the mask that the model predicts for each input's prompt (`Embedder.predict_masks`); None without masks."""
PROMPT_VARIANTS = ("point", "mask", "own_mask", "filled_box")
"""Beside the box: a click inside, the annotated mask, the model's mask of the box, and the box as a mask."""
SAME_REGION_IOU = 0.5
"""Two boxes with at least this IoU are of one region."""
BOX_MASK_SIZE = 64
"""Height and width of the mask of a box over the whole image, in pixels."""

PromptedQuery = tuple[int, str]
"""Index of a sample, and the variant of its prompt."""
Embeddings = dict[PromptedQuery, Float[Tensor, " dim"]]


@dataclass
class Tally:
    """Sums over the samples of one variant.

    nearer: samples whose variant is nearer to the box of the same region than any other region is.
    same, other: cosines to the box, of the variant and of the nearest other region.

    Example:
        >>> Tally(n=2, nearer=1, same=1.8, other=1.2).nearer
        1
    """

    n: int = 0
    nearer: int = 0
    same: float = 0.0
    other: float = 0.0


@dataclass
class PromptConsistency:
    """Tallies by task and variant; `without_other_region` counts samples alone on their image, which are left out.

    Example:
        >>> found = PromptConsistency({"scar/ADE20K": {"point": Tally(n=2, nearer=1, same=1.8, other=1.2)}})
        >>> found.as_json()["scar/ADE20K"]["point"]["nearer"]
        0.5
    """

    tallies: dict[str, dict[str, Tally]] = field(default_factory=dict)
    without_other_region: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return task -> variant -> {n, nearer, same, other}, all but n divided by n."""
        return {
            task: {variant: mean_tally(tallies[variant]) for variant in PROMPT_VARIANTS if variant in tallies}
            for task, tallies in sorted(self.tallies.items())
        }


def mean_tally(tally: Tally) -> dict[str, float]:
    """Return n, and the other sums divided by n."""
    return {name: value if name == "n" else value / tally.n for name, value in asdict(tally).items()}


def prompt_consistency(
    embed: Embed,
    samples: Iterable[RankingSample],
    masks: Masks | None = None,
    with_prompt: WithPrompt = replace_prompt,
) -> PromptConsistency:
    """Embed every region in each variant, and count how often its box is nearer to that than to any other region.

    Other regions are those of the same image, given in that variant or by their box. Samples of one image are expected
    to follow each other, as in shards. What an input formatter writes about a box enters the cosines. with_prompt: see
    `robustness`.
    """
    found = PromptConsistency()
    for _, together in groupby((sample for sample in samples if sample.region is not None), key=image_key_of):
        of_image = list(together)
        others = [
            [index for index in range(len(of_image)) if regions_differ(sample, of_image[index])] for sample in of_image
        ]
        found.without_other_region += sum(not indices for indices in others)
        if any(others):
            update_tallies(found, of_image, others, embed_variants(of_image, embed, masks, with_prompt))
    return found


def image_key_of(sample: RankingSample) -> str:
    """Return the content key of a sample's image."""
    query = sample.query
    return query.image_keys[0] if query.image_keys else pixel_key(query.images[0])


def regions_differ(first: RankingSample, second: RankingSample) -> bool:
    """Return whether two samples are about different regions."""
    assert first.region is not None and second.region is not None
    return bool(box_iou(first.region.box[None].float(), second.region.box[None].float()) < SAME_REGION_IOU)


def embed_variants(
    samples: Sequence[RankingSample], embed: Embed, masks: Masks | None, with_prompt: WithPrompt = replace_prompt
) -> Embeddings:
    """Embed each sample's query with its box and in every variant that there is data for."""
    boxes = [with_prompt(sample, evaluation_query(sample, "box").prompt) for sample in samples]
    predicted = masks(boxes) if masks is not None else None
    queries = {(index, "box"): query for index, query in enumerate(boxes)}
    for index, sample in enumerate(samples):
        variants = prompt_variants(sample, None if predicted is None else predicted[index])
        queries |= {(index, variant): with_prompt(sample, prompt) for variant, prompt in variants}
    return dict(zip(queries, embed(list(queries.values())), strict=True))


def prompt_variants(
    sample: RankingSample, predicted: Bool[Tensor, "height width"] | None
) -> Iterator[tuple[str, VisualPrompt]]:
    """Return each other prompt of the sample's region. predicted: the model's own mask of the box."""
    assert sample.region is not None
    yield "point", evaluation_query(sample, "point").prompt
    if sample.region.mask is not None:
        yield "mask", evaluation_query(sample, "mask").prompt
    for variant, mask in (("own_mask", predicted), ("filled_box", box_mask(sample.region.box))):
        if mask is not None and mask.any():
            yield variant, VisualPrompt(masks=mask[None].cpu())


def box_mask(box: Float[Tensor, "4"]) -> Bool[Tensor, "height width"]:
    """Return a box (normalised, xyxy) as a mask over the whole image: the pixels whose centres lie in it."""
    centres = (torch.arange(BOX_MASK_SIZE) + 0.5) / BOX_MASK_SIZE
    x1, y1, x2, y2 = box.tolist()
    return ((centres >= y1) & (centres <= y2))[:, None] & ((centres >= x1) & (centres <= x2))


def update_tallies(
    found: PromptConsistency,
    samples: Sequence[RankingSample],
    others: Sequence[Sequence[int]],
    embeddings: Embeddings,
) -> None:
    """Count one image's samples. others: for each sample, the indices of those about other regions."""
    for index, sample in enumerate(samples):
        for variant in PROMPT_VARIANTS if others[index] else ():
            if (index, variant) not in embeddings:
                continue
            box = embeddings[index, "box"]
            keys = (key for other in others[index] for key in ((other, "box"), (other, variant)))
            rivals = [embeddings[key] for key in keys if key in embeddings]
            same, nearest = float(box @ embeddings[index, variant]), max(float(box @ rival) for rival in rivals)
            tally = found.tallies.setdefault(sample.task, {}).setdefault(variant, Tally())
            tally.n += 1
            tally.nearer += same > nearest
            tally.same += same
            tally.other += nearest
