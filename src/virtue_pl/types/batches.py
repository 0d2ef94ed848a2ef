"""Batches: rows with images, prompts and ids, and the interface of what makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from virtue_pl.types.features import (
    NO_FEATURES,
    ImageFeatures,
    SegmentFeatures,
)
from virtue_pl.types.prompts import VisualPrompt
from virtue_pl.types.samples import RankingSample, Sample
from virtue_pl.types.tensors import TensorDataclass, _empty, select_owned


@dataclass(frozen=True, eq=False)
class ImageBatch(TensorDataclass):
    """The distinct images of a batch, prepared for the two streams; a tuple because sizes may differ.

    vision: for the VLM's tower; segmentation: for the segmentation model. Both are uint8 RGB where the model
    normalises.
    features: what is stored of each image; empty where nothing is of any. A stream's features stand in for its pixels,
    which are None.
        So are the segmentation model's pixels of an image without a prompt, where it reads prompted images alone.
    keys: the content key of each image as it was prepared, "" for an image without one; empty for a batch of images
    alone.
    """

    vision: tuple[Shaped[Tensor, "3 height width"] | None, ...] = ()
    segmentation: tuple[Shaped[Tensor, "3 size size"] | None, ...] = ()
    features: tuple[ImageFeatures, ...] = ()
    keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        return max(len(self.vision), len(self.segmentation))

    @property
    def stored_features(self) -> tuple[ImageFeatures, ...]:
        """The stored features of each image, in order; `NO_FEATURES` for one without."""
        return self.features or (NO_FEATURES,) * len(self)

    def select(self, indices: Sequence[int]) -> ImageBatch:
        return ImageBatch(
            tuple(self.vision[i] for i in indices) if self.vision else (),
            tuple(self.segmentation[i] for i in indices) if self.segmentation else (),
            tuple(self.features[i] for i in indices) if self.features else (),
            tuple(self.keys[i] for i in indices) if self.keys else (),
        )

    def split(self, size: int) -> list[ImageBatch]:
        """In groups of at most `size`, in order."""
        return [self.select(range(len(self))[start : start + size]) for start in range(0, len(self), size)]

    def with_features(self, features: Sequence[ImageFeatures]) -> ImageBatch:
        """The same images with frozen features, one entry each, in place of all pixels."""
        nothing = (None,) * len(self)
        return ImageBatch(
            nothing if self.vision else (), nothing if self.segmentation else (), tuple(features), self.keys
        )


@dataclass(frozen=True, eq=False)
class ShardImageBatch(TensorDataclass):
    """Distinct images of one shard, for what is stored of them.

    folder: of the shards, and `fingerprint` its content's. shard: the tar's name. keys: the images' content keys.
    last: nothing more of the shard comes. A shard of which all is stored comes as one such batch, without images.
    """

    folder: str
    fingerprint: str
    shard: str
    keys: tuple[str, ...]
    images: ImageBatch
    last: bool

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, eq=False)
class PromptBatch(TensorDataclass):
    """Visual prompts, and which of the batch's images each is on."""

    prompts: tuple[VisualPrompt, ...]
    images: Int[Tensor, " prompts"]

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> PromptBatch:
        chosen = torch.as_tensor(indices, dtype=torch.long, device=self.images.device)
        return PromptBatch(tuple(self.prompts[i] for i in indices), self.images[chosen])

    def on(self, images: Sequence[int]) -> PromptBatch:
        """The prompts, with their images' numbers among the given ones."""
        place = {image: number for number, image in enumerate(images)}
        numbers = [place[image] for image in self.images.tolist()]
        return PromptBatch(self.prompts, torch.as_tensor(numbers, dtype=torch.long, device=self.images.device))


@dataclass(frozen=True, eq=False)
class EncoderBatch(TensorDataclass):
    """Rows to embed, some with an image and some without, some prompted and some not.

    A *use* is one row's use of one image in its text: `use_rows` and `use_images` say which row and which image.
    Several rows may use one image, which is then encoded once. Each of `prompts` becomes segment tokens in front of its
    row
    (`prompt_rows`); a use may have several prompts on its image, or none.
    position_ids: as the input formatter wants them; None where the backbone finds them in the ids alone.
    use_images, prompt_rows: left out where every use has one prompt: then `prompts.images` and `use_rows` say it.
    segments: what a frozen segmentation stream sees at each prompt, one prompt each; empty where nothing is known.
    """

    input_ids: Int[Tensor, "rows tokens"]
    attention_mask: Int[Tensor, "rows tokens"]
    images: ImageBatch
    prompts: PromptBatch
    use_rows: Int[Tensor, " uses"]
    position_ids: Int[Tensor, "*axes rows tokens"] | None = None
    use_images: Int[Tensor, " uses"] = None  # type: ignore[assignment]  # filled below
    prompt_rows: Int[Tensor, " prompts"] = None  # type: ignore[assignment]  # filled below
    segments: tuple[SegmentFeatures, ...] = ()

    def __post_init__(self) -> None:
        if self.use_images is None:
            object.__setattr__(self, "use_images", self.prompts.images)
        if self.prompt_rows is None:
            object.__setattr__(self, "prompt_rows", self.use_rows)

    def __len__(self) -> int:
        return len(self.input_ids)

    def split(self, size: int) -> tuple[EncoderBatch, ...]:
        """Chunks of at most `size` rows, each with just the images it uses."""
        return tuple(self.select(range(start, min(start + size, len(self)))) for start in range(0, len(self), size))

    def select(self, rows: Sequence[int]) -> EncoderBatch:
        """The given rows, in that order, with just the images they use; trailing padding is dropped."""
        uses, use_rows = select_owned(self.use_rows, rows)
        prompts, prompt_rows = select_owned(self.prompt_rows, rows)
        used, prompted = self.use_images[uses].tolist(), self.prompts.images[prompts].tolist()
        images = list(dict.fromkeys([*used, *prompted]))
        index = torch.as_tensor(list(rows), dtype=torch.long, device=self.input_ids.device)
        mask = self.attention_mask[index]
        length = int(mask.any(dim=0).nonzero().max()) + 1 if mask.any() else 0
        return EncoderBatch(
            self.input_ids[index][:, :length],
            mask[:, :length],
            self.images.select(images),
            self.prompts.select(prompts.tolist()).on(images),
            use_rows,
            None if self.position_ids is None else self.position_ids[..., index, :length],
            torch.as_tensor([images.index(image) for image in used], dtype=torch.long, device=index.device),
            prompt_rows,
            tuple(self.segments[prompt] for prompt in prompts.tolist()) if self.segments else (),
        )

    def prompted(self) -> tuple[ImageBatch, PromptBatch]:
        """The images that prompts are on, and the prompts on them."""
        images = list(dict.fromkeys(self.prompts.images.tolist()))
        return self.images.select(images), self.prompts.on(images)


@dataclass(frozen=True, eq=False)
class PairIds(TensorDataclass):
    """Content ids of a contrastive batch, by which a loss tells which candidates are no negatives.

    Equal ids mean equal content: a candidate whose id equals that of a query's target is right for that query, too.

    query_ids: of each pair's sample. target_ids: of each pair's target.
    negative_ids: of each hard negative, those of all queries in one list. negative_rows: the pair that each hard
    negative belongs to.
    image_ids: of each query's image, or of its sample where it has none; empty where images are not told apart.

    Example:
        >>> ids = PairIds(torch.tensor([7, 8]), torch.tensor([1, 2]))
        >>> len(ids), len(ids.negative_ids)
        (2, 0)
    """

    query_ids: Int[Tensor, " pairs"]
    target_ids: Int[Tensor, " pairs"]
    negative_ids: Int[Tensor, " negatives"] = _empty(0, dtype=torch.long)
    negative_rows: Int[Tensor, " negatives"] = _empty(0, dtype=torch.long)
    image_ids: Int[Tensor, " pairs"] = _empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.query_ids)


@dataclass(frozen=True, eq=False)
class PairBatch(TensorDataclass):
    """A contrastive batch: row i of `targets` is right for row i of `queries`.

    negatives: the hard negatives of all queries, in one batch; `ids.negative_rows` says whose each is. None without
    any.
    """

    keys: tuple[str, ...]
    queries: EncoderBatch
    targets: EncoderBatch
    negatives: EncoderBatch | None
    ids: PairIds

    def __len__(self) -> int:
        return len(self.keys)


EMBEDDING_FILE_KEYS = {
    "query_ids": "query_ids",
    "target_ids": "target_ids",
    "negative_ids": "negative_ids",
    "negative_rows": "negative_rows",
    "image_ids": "picture_ids",
}
"""Field of `PairIds` -> name of its tensor in a file of stored embeddings."""


@dataclass(frozen=True, eq=False)
class EmbeddingBatch(TensorDataclass):
    """A `PairBatch` after encoding: unit vectors, and the pairs' ids."""

    queries: Float[Tensor, "pairs dim"]
    targets: Float[Tensor, "pairs dim"]
    negatives: Float[Tensor, "negatives dim"]
    ids: PairIds

    def __len__(self) -> int:
        return len(self.queries)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all tensors under their names in a file of stored embeddings."""
        ids = {name: getattr(self.ids, field) for field, name in EMBEDDING_FILE_KEYS.items()}
        return {"queries": self.queries, "targets": self.targets, "negatives": self.negatives, **ids}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EmbeddingBatch:
        """Return the batch of which `to_tensors` gave the tensors."""
        ids = {field: tensors[name] for field, name in EMBEDDING_FILE_KEYS.items() if name in tensors}
        return cls(tensors["queries"], tensors["targets"], tensors["negatives"], PairIds(**ids))


@dataclass(frozen=True, eq=False)
class RankingBatch(TensorDataclass):
    """Evaluation queries, each in several prompt modes, and their candidates.

    Row `m * len(samples) + i` of `queries` is sample i in mode `modes[m]`.
    candidates: the distinct candidates of the batch; `candidate_rows[i]` are the rows of sample i's.
    """

    samples: tuple[RankingSample, ...]
    modes: tuple[str, ...]
    queries: EncoderBatch
    candidates: EncoderBatch
    candidate_rows: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, eq=False)
class RankingOutput(TensorDataclass):
    """What evaluation returns for a `RankingBatch`, mode by mode, sample by sample (`m * len(samples) + i`).

    scores: cosine with each candidate of the sample, in the sample's order.
    mask_logits: the segmentation model's mask for each row that has an image (`mask_rows`); None without the stream.
    """

    scores: tuple[Float[Tensor, " candidates"], ...]
    mask_logits: Float[Tensor, "masks height width"] | None = None
    mask_rows: Int[Tensor, " masks"] | None = None


@dataclass(frozen=True, eq=False)
class RegionBatch(TensorDataclass):
    """Prompts and the regions they mean, for what learns from regions alone (prompt encoder, segmentation).

    masks: float in {0, 1}, over the whole image at `mask_size`; boxes: xyxy, normalised.
    tasks, modes: of every row, its dataset and how its region is pointed at.
    """

    keys: tuple[str, ...]
    images: ImageBatch
    prompts: PromptBatch
    boxes: Float[Tensor, "prompts 4"]
    masks: Float[Tensor, "prompts height width"]
    modes: tuple[str, ...]
    tasks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)


class Collator(Protocol):
    """What data learns from the model: how samples become one of its batches (`connect(collator)`)."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """By stream ("segmentation", "vision"), of what the features depend on that may be stored of an image."""

    def collate_train(self, samples: Sequence[Sample]) -> Any:
        """A training batch. Random choices (which kind of prompt) come from torch's generator."""

    def collate_eval(self, samples: Sequence[RankingSample]) -> Any:
        """An evaluation batch, with no random choice but what the sample's key seeds."""

    def collate_images(self, images: Sequence[UInt8[Tensor, "3 height width"]]) -> ImageBatch:
        """ImageBatch alone, as the streams read them."""
