"""Batches: rows with images, prompts and ids, and the interface of the collators that make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from virtue_pl.types.features import NO_FEATURES, ImageFeatures, SegmentFeatures
from virtue_pl.types.layout import RowLayout, rows_index
from virtue_pl.types.prompts import PromptBatch
from virtue_pl.types.samples import RankingSample, Sample
from virtue_pl.types.tensors import TensorDataclass, empty_tensor, index_tensors


@dataclass(frozen=True, eq=False)
class ImageBatch(TensorDataclass):
    """The distinct images of a batch, prepared for the two streams; tuples, because sizes may differ.

    vision: pixels for the VLM's tower. segmentation: pixels for the segmentation model. Both are uint8 RGB where the
        model normalises them. None stands for pixels that are not read: the stream's features are given instead, or the
        image has no prompt and the segmentation model reads prompted images alone.
    features: stored or frozen features, one entry an image; empty where no image has any.
    keys: the content key of each image as it was prepared, "" for an image without one; empty for images that come
        without rows.

    Example:
        >>> images = ImageBatch(vision=(torch.zeros(3, 28, 28), torch.zeros(3, 28, 56)))
        >>> len(images), len(images.select([1]))
        (2, 1)
    """

    vision: tuple[Shaped[Tensor, "3 height width"] | None, ...] = ()
    segmentation: tuple[Shaped[Tensor, "3 size size"] | None, ...] = ()
    features: tuple[ImageFeatures, ...] = ()
    keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        return max(len(self.vision), len(self.segmentation))

    @property
    def stored_features(self) -> tuple[ImageFeatures, ...]:
        """Each image's stored features, in order; `NO_FEATURES` for an image without any."""
        return self.features or (NO_FEATURES,) * len(self)

    def select(self, indices: Sequence[int]) -> ImageBatch:
        """Return the images of the given indices, in that order."""
        return ImageBatch(
            tuple(self.vision[i] for i in indices) if self.vision else (),
            tuple(self.segmentation[i] for i in indices) if self.segmentation else (),
            tuple(self.features[i] for i in indices) if self.features else (),
            tuple(self.keys[i] for i in indices) if self.keys else (),
        )

    def split(self, size: int) -> list[ImageBatch]:
        """Return the images in groups of at most `size`, in order."""
        return [self.select(range(len(self))[start : start + size]) for start in range(0, len(self), size)]

    def with_features(self, features: Sequence[ImageFeatures]) -> ImageBatch:
        """Return the same images with frozen features, one entry each, instead of all pixels."""
        nothing = (None,) * len(self)
        return ImageBatch(
            nothing if self.vision else (), nothing if self.segmentation else (), tuple(features), self.keys
        )


@dataclass(frozen=True, eq=False)
class ShardImageBatch(TensorDataclass):
    """Distinct images of one shard, whose features are to be stored.

    folder: the folder of the shards. fingerprint: of the folder's content. shard: the tar's name.
    keys: the images' content keys. last: whether this is the shard's last batch. A shard whose features are all stored
    comes as one such batch, without images.

    Example:
        >>> batch = ShardImageBatch("shards", "0a1b", "train-0000.tar", (), ImageBatch(), last=True)
        >>> len(batch)
        0
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
class EncoderBatch(TensorDataclass):
    """Rows to embed; each may have images and prompts.

    A *use* is the use of one image in one row's text: `use_rows` and `use_image_index` give its row and its image.
    Several rows may use one image, which is then encoded once. Each of `prompts` becomes segment tokens in front of its
    row (`prompt_rows`); a use may have several prompts on its image, or none.

    position_ids: as the input formatter computes them; None where the backbone derives them from the ids.
    use_image_index, prompt_rows: by default every use has one prompt; then they equal `prompts.image_index` and
        `use_rows`.
    segments: the frozen segmentation stream's output for each prompt, one prompt each; empty where it is still to be
        computed.

    Example:
        >>> none = torch.zeros(0, dtype=torch.long)
        >>> ids = torch.tensor([[7, 8, 9], [7, 0, 0]])
        >>> batch = EncoderBatch(ids, (ids > 0).long(), ImageBatch(), PromptBatch((), none), use_rows=none)
        >>> batch.select([1]).input_ids.tolist()
        [[7]]
    """

    input_ids: Int[Tensor, "rows tokens"]
    attention_mask: Int[Tensor, "rows tokens"]
    images: ImageBatch
    prompts: PromptBatch
    use_rows: Int[Tensor, " uses"]
    position_ids: Int[Tensor, "*axes rows tokens"] | None = None
    use_image_index: Int[Tensor, " uses"] = None  # type: ignore[assignment]  # filled below
    prompt_rows: Int[Tensor, " prompts"] = None  # type: ignore[assignment]  # filled below
    segments: tuple[SegmentFeatures, ...] = ()

    host_properties = ("layout",)

    def __post_init__(self) -> None:
        if self.use_image_index is None:
            object.__setattr__(self, "use_image_index", self.prompts.image_index)
        if self.prompt_rows is None:
            object.__setattr__(self, "prompt_rows", self.use_rows)

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def layout(self) -> RowLayout:
        """Whose the images and prompts are, on the host: read once, by the collator, and carried along.

        A copy with `dataclasses.replace` reads it again, from wherever the tensors are.
        """
        indices = (self.use_rows, self.use_image_index, self.prompt_rows)
        return RowLayout.read(*indices, self.prompts.owners, self.attention_mask)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EncoderBatch:
        """Return the same rows with all tensors on `device`. The host reads the layout first, where it is on it."""
        if self.input_ids.device.type == "cpu":
            _ = self.layout
        return super().to(device, non_blocking)

    def with_images(self, images: ImageBatch, segments: Sequence[SegmentFeatures] = ()) -> EncoderBatch:
        """Return the same rows with their images given otherwise, such as by features, one for one."""
        return self.share_host_properties(replace(self, images=images, segments=tuple(segments)))

    def split(self, size: int) -> tuple[EncoderBatch, ...]:
        """Return chunks of at most `size` rows, in order, each with just the images that it uses."""
        return tuple(self.select(range(start, min(start + size, len(self)))) for start in range(0, len(self), size))

    def select(self, rows: Sequence[int]) -> EncoderBatch:
        """Return copies of the given rows, in that order, with just the images that they use, no trailing padding.

        Nothing is read from the device, and what goes to it goes as one tensor.
        """
        images, prompts, layout = self.layout.select(rows)
        chosen, length = rows_index(rows), max(layout.lengths, default=0)
        listed = [] if isinstance(chosen, slice) else chosen
        lists = (layout.use_rows, layout.use_images, layout.prompt_rows, layout.prompt_images, listed)
        use_rows, use_images, prompt_rows, prompt_images, index = index_tensors(lists, self.input_ids.device)
        where = chosen if isinstance(chosen, slice) else index
        selected = EncoderBatch(
            self.input_ids[where, :length].clone(),
            self.attention_mask[where, :length].clone(),
            self.images.select(images),
            PromptBatch.on_host([self.prompts.prompts[i] for i in prompts], layout.prompt_images, prompt_images),
            use_rows,
            None if self.position_ids is None else self.position_ids[..., where, :length].clone(),
            use_images,
            prompt_rows,
            tuple(self.segments[prompt] for prompt in prompts) if self.segments else (),
        )
        vars(selected)["layout"] = layout
        return selected

    def prompted_images(self) -> tuple[ImageBatch, PromptBatch]:
        """Return the images that prompts are on, and the prompts on these images."""
        images = list(dict.fromkeys(self.prompts.owners))
        return self.images.select(images), self.prompts.reindex(images)


@dataclass(frozen=True, eq=False)
class PairIds(TensorDataclass):
    """Content ids of a contrastive batch, by which a loss excludes false negatives.

    Equal ids mean equal content: a candidate whose id equals that of a query's target is right for that query, too.

    query_ids: of each pair's sample. target_ids: of each pair's target.
    negative_ids: of each hard negative, those of all queries in one list. negative_rows: for each hard negative, the
        index of its pair.
    image_ids: of each query's image, or of its sample where it has none; empty where images are not distinguished.

    Example:
        >>> ids = PairIds(torch.tensor([7, 8]), torch.tensor([1, 2]))
        >>> len(ids), len(ids.negative_ids)
        (2, 0)
    """

    query_ids: Int[Tensor, " pairs"]
    target_ids: Int[Tensor, " pairs"]
    negative_ids: Int[Tensor, " negatives"] = empty_tensor(0, dtype=torch.long)
    negative_rows: Int[Tensor, " negatives"] = empty_tensor(0, dtype=torch.long)
    image_ids: Int[Tensor, " pairs"] = empty_tensor(0, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.query_ids)


@dataclass(frozen=True, eq=False)
class PairBatch(TensorDataclass):
    """A contrastive batch: row i of `targets` is right for row i of `queries`.

    keys: the samples' keys. negatives: the hard negatives of all queries in one batch (`ids.negative_rows` gives the
    pair of each); None without any.

    Example:
        >>> batch = model.collator.collate_train(samples)  # doctest: +SKIP
        >>> len(batch) == len(batch.queries) == len(batch.targets)
        True
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
"""Maps each field of `PairIds` to the name of its tensor in a file of stored embeddings."""


@dataclass(frozen=True, eq=False)
class EmbeddingBatch(TensorDataclass):
    """A `PairBatch` after encoding: unit vectors, and the pairs' ids.

    Example:
        >>> pairs = PairIds(torch.tensor([1, 2]), torch.tensor([3, 4]))
        >>> batch = EmbeddingBatch(torch.eye(2), torch.eye(2), torch.zeros(0, 2), pairs)
        >>> sorted(batch.to_tensors())[:3]
        ['negative_ids', 'negative_rows', 'negatives']
    """

    queries: Float[Tensor, "pairs dim"]
    targets: Float[Tensor, "pairs dim"]
    negatives: Float[Tensor, "negatives dim"]
    ids: PairIds

    def __len__(self) -> int:
        return len(self.queries)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all tensors by their names in a file of stored embeddings."""
        ids = {name: getattr(self.ids, field) for field, name in EMBEDDING_FILE_KEYS.items()}
        return {"queries": self.queries, "targets": self.targets, "negatives": self.negatives, **ids}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EmbeddingBatch:
        """Return the batch whose tensors are given as `to_tensors` returns them."""
        ids = {field: tensors[name] for field, name in EMBEDDING_FILE_KEYS.items() if name in tensors}
        return cls(tensors["queries"], tensors["targets"], tensors["negatives"], PairIds(**ids))


@dataclass(frozen=True, eq=False)
class RankingBatch(TensorDataclass):
    """Evaluation queries, each in several prompt modes, and their candidates.

    queries: row `m * len(samples) + i` is sample i in mode `modes[m]`.
    candidates: the distinct candidates of the batch. candidate_rows: for each sample, the rows of its candidates.

    Example:
        >>> batch = model.collator.collate_eval(samples)  # doctest: +SKIP
        >>> len(batch.queries) == len(batch.modes) * len(batch.samples)
        True
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
    """The scores of a `RankingBatch`, mode by mode, sample by sample (index `m * len(samples) + i`).

    scores: each query's cosines with its sample's candidates, in the sample's order.
    mask_logits: the segmentation model's mask for each prompted row; None without the stream.
    mask_rows: for each mask, the row of `RankingBatch.queries` that it belongs to.

    Example:
        >>> output = RankingOutput(scores=(torch.tensor([0.9, 0.1]),))
        >>> int(output.scores[0].argmax())
        0
    """

    scores: tuple[Float[Tensor, " candidates"], ...]
    mask_logits: Float[Tensor, "masks height width"] | None = None
    mask_rows: Int[Tensor, " masks"] | None = None


@dataclass(frozen=True, eq=False)
class NoRows(TensorDataclass):
    """The only batch of a rank that has no row of an evaluation: it takes part in what ranks do together behind it.

    Example:
        >>> len(NoRows())
        0
    """

    def __len__(self) -> int:
        return 0


@dataclass(frozen=True, eq=False)
class RegionBatch(TensorDataclass):
    """Prompts and the regions they point at, from which a prompt encoder or a segmentation model learns alone.

    masks: in {0, 1}, over the whole image at `mask_size`. boxes: xyxy, normalised.
    tasks, modes: each row's dataset, and the prompt mode by which its region is pointed at.

    Example:
        >>> batch = segmentation_extractor.collator.collate_train(samples)  # doctest: +SKIP
        >>> batch.masks.shape[0] == len(batch.prompts)
        True
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
    """An interface by which a model gives data the code that makes its batches (`connect(collator)`).

    Example:
        >>> data.connect(model.collator)  # doctest: +SKIP
        >>> batch = model.collator.collate_train([sample])
    """

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Each stream's fingerprint ("segmentation", "vision") of all that an image's stored features depend on."""

    def collate_train(self, samples: Sequence[Sample]) -> Any:
        """Return a training batch; random choices (which kind of prompt) are drawn from torch's generator."""

    def collate_eval(self, samples: Sequence[RankingSample]) -> Any:
        """Return an evaluation batch, whose random choices are seeded by each sample's key."""

    def collate_images(self, images: Sequence[UInt8[Tensor, "3 height width"]]) -> ImageBatch:
        """Return images without rows, prepared for the streams."""
