"""What flows through virtue_pl: prompts, inputs, samples and batches.

Coordinates are normalised to [0, 1], x before y, origin at the picture's top-left corner, so they survive every resize.
Pixels enter only through `VisualPrompt.from_pixels` and `Region.from_pixels`. "No prompt" is an empty `VisualPrompt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d

IMAGE_TOKEN = "<|image_pad|>"
"""Where a picture stands inside a text, whichever backbone reads it; each backbone puts its own token there."""

Self = TypeVar("Self")


class VirtueError(Exception):
    """A mistake a user can mend: says what was found, what was expected and which option to change."""


class DataError(VirtueError):
    """A bad sample. Streaming skips and counts it; `key` finds it again."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


def move(value: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    """Everything that can move to `device`, inside tuples, mappings and batches too."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, Movable):
        return value.to(device, non_blocking)
    if isinstance(value, tuple):
        return tuple(move(item, device, non_blocking) for item in value)
    if isinstance(value, dict):
        return {name: move(item, device, non_blocking) for name, item in value.items()}
    return value


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Every floating-point tensor in `dtype`, inside tuples and batches too."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Movable):
        return replace(value, **{f.name: cast(getattr(value, f.name), dtype) for f in fields(value)})  # type: ignore[type-var, arg-type]
    return tuple(cast(item, dtype) for item in value) if isinstance(value, tuple) else value


def pin(value: Any) -> Any:
    """`value` in page-locked memory, inside tuples, mappings and batches too."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, Movable):
        return value.pin_memory()
    if isinstance(value, tuple):
        return tuple(pin(item) for item in value)
    if isinstance(value, dict):
        return {name: pin(item) for name, item in value.items()}
    return value


class Movable:
    """A frozen dataclass whose tensors move together."""

    def to(self: Self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return replace(self, **{f.name: move(getattr(self, f.name), device, non_blocking) for f in fields(self)})  # type: ignore[type-var, arg-type]

    def pin_memory(self: Self) -> Self:
        return replace(self, **{f.name: pin(getattr(self, f.name)) for f in fields(self)})  # type: ignore[type-var, arg-type]


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Any:
    return field(default_factory=lambda: torch.zeros(shape, dtype=dtype))


@dataclass(frozen=True, eq=False)
class VisualPrompt(Movable):
    """What a person points at in one picture; every field may be empty, and all empty means "no prompt".

    boxes: xyxy, normalised. points: (x, y), normalised. point_labels: 1 = inside, 0 = outside.
    masks: over the whole picture, at any resolution.
    """

    boxes: Float[Tensor, "boxes 4"] = _empty(0, 4)
    points: Float[Tensor, "points 2"] = _empty(0, 2)
    point_labels: Int[Tensor, " points"] = _empty(0, dtype=torch.long)
    masks: Bool[Tensor, "masks height width"] = _empty(0, 1, 1, dtype=torch.bool)

    def __post_init__(self) -> None:
        for name, found, expected in (
            ("boxes", self.boxes.shape, self.boxes.ndim == 2 and self.boxes.shape[1] == 4),
            ("points", self.points.shape, self.points.ndim == 2 and self.points.shape[1] == 2),
            ("point_labels", self.point_labels.shape, self.point_labels.shape == self.points.shape[:1]),
            ("masks", self.masks.shape, self.masks.ndim == 3),
        ):
            if not expected:
                shape = {"boxes": "[boxes, 4]", "points": "[points, 2]", "point_labels": "one label a point", "masks": "[masks, height, width]"}
                raise VirtueError(f"visual prompt: {name} of shape {list(found)}, expected {shape[name]}")

    @classmethod
    def from_pixels(
        cls,
        boxes: Sequence[Sequence[float]] | Tensor = (),
        points: Sequence[Sequence[float]] | Tensor = (),
        labels: Sequence[int] | Tensor | None = None,
        masks: Bool[Tensor, "masks height width"] | None = None,
        *,
        size: tuple[int, int],
    ) -> VisualPrompt:
        """A prompt in pixels of a picture of `size` = (height, width). Boxes are xyxy; points without labels are inside.

        Raises VirtueError for a box or a point outside the picture, a box of no area, an empty mask, a label other than 0 or 1.
        """
        height, width = size
        scale = torch.tensor([width, height], dtype=torch.float32)
        pixel_boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4) if len(boxes) else torch.zeros(0, 4)
        pixel_points = torch.as_tensor(points, dtype=torch.float32).reshape(-1, 2) if len(points) else torch.zeros(0, 2)
        for box in pixel_boxes.tolist():
            x1, y1, x2, y2 = box
            if not (0 <= x1 <= width and 0 <= x2 <= width and 0 <= y1 <= height and 0 <= y2 <= height):
                raise VirtueError(f"box {_numbers(box)} lies outside the picture of {width}x{height} pixels")
            if not (x1 < x2 and y1 < y2):
                raise VirtueError(f"box {_numbers(box)} has no area, expected [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
        for point in pixel_points.tolist():
            if not (0 <= point[0] <= width and 0 <= point[1] <= height):
                raise VirtueError(f"point {_numbers(point)} lies outside the picture of {width}x{height} pixels")
        point_labels = torch.ones(len(pixel_points), dtype=torch.long) if labels is None else torch.as_tensor(labels, dtype=torch.long)
        if not bool(((point_labels == 0) | (point_labels == 1)).all()):
            raise VirtueError(f"point labels {point_labels.tolist()}, expected 1 (inside) or 0 (outside)")
        mask = torch.zeros(0, 1, 1, dtype=torch.bool) if masks is None else torch.as_tensor(masks, dtype=torch.bool)
        if len(mask) and not bool(mask.flatten(1).any(dim=1).all()):
            raise VirtueError("a mask is empty, expected at least one pixel inside")
        return cls(pixel_boxes / scale.repeat(2), pixel_points / scale, point_labels, mask)

    @property
    def is_empty(self) -> bool:
        return not (len(self.boxes) or len(self.points) or len(self.masks))


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


@dataclass(frozen=True, eq=False)
class Region(Movable):
    """One annotated object: its box (xyxy, normalised) and, where known, its exact mask over the whole picture."""

    box: Float[Tensor, "4"]
    mask: Bool[Tensor, "height width"] | None = None


@dataclass(frozen=True, eq=False)
class PictureFeatures(Movable):
    """What the frozen networks see in one picture, whatever the prompt; a stream of which nothing is known is empty.

    segmentation: `SegmentationBackbone.image_features`, finest scale first. vision: `VLMBackbone.vision_features`.
    """

    segmentation: tuple[Float[Tensor, "channels height width"], ...] = ()
    vision: tuple[Float[Tensor, "..."], ...] = ()


NO_FEATURES = PictureFeatures()
"""Of an image of which no frozen features are stored or cached."""


def merge_features(features: PictureFeatures, other: PictureFeatures) -> PictureFeatures:
    """Return each stream's features, those of `other` where `features` has none."""
    return PictureFeatures(features.segmentation or other.segmentation, features.vision or other.vision)


@dataclass(frozen=True, eq=False)
class EmbeddingInput(Movable):
    """One thing to embed: a text, pictures (uint8 RGB), and visual prompts on the first of them.

    `text` may hold `IMAGE_TOKEN` where a picture stands; without one, the pictures come first.
    `image_keys` name the pictures by content, so that one that occurs twice in a batch is encoded once.
    `features` are what is stored of the pictures, one each; empty where nothing is.
    `prompt` is one region, however many points, boxes and masks say which. `further_prompts` are further regions of the same picture, each
    of which becomes segment tokens of its own.
    """

    text: str = ""
    images: tuple[UInt8[Tensor, "3 height width"], ...] = ()
    prompt: VisualPrompt = field(default_factory=VisualPrompt)
    image_keys: tuple[str, ...] = ()
    features: tuple[PictureFeatures, ...] = ()
    further_prompts: tuple[VisualPrompt, ...] = ()

    @property
    def prompts(self) -> tuple[VisualPrompt, ...]:
        """All regions of the first picture; one that is empty where nothing is pointed at."""
        return (self.prompt, *self.further_prompts)


@dataclass(frozen=True, eq=False)
class Sample:
    """One training pair with its hard negatives. `region` is what the query's caption speaks of, exactly."""

    key: str
    task: str
    query: EmbeddingInput
    target: EmbeddingInput
    negatives: tuple[EmbeddingInput, ...] = ()
    region: Region | None = None


@dataclass(frozen=True, eq=False)
class RankingSample:
    """One evaluation query and its candidates.

    `rankings` names lists of indices into `candidates`, the right one first: the sample is scored once for each
    (for example "hit@1" over ten captions, and "object" over the right one and three object swaps).
    """

    key: str
    task: str
    query: EmbeddingInput
    candidates: tuple[EmbeddingInput, ...]
    rankings: Mapping[str, tuple[int, ...]]
    region: Region | None = None


@dataclass(frozen=True, eq=False)
class EvaluationRow:
    """A query of an evaluation set and its candidates, before any picture is decoded.

    Inputs name their pictures by `image_keys` and hold no pixels. `row` counts from 0 in the set's file.
    text: of the query, without the region in words; published_text: the same as the published evaluation writes it.
    box_words: the region's box as the published evaluation says it; "" without a region. size: (height, width) of the query's picture.
    rankings: see `RankingSample`; a candidate with the right one's content is in none.
    """

    set: str
    row: int
    text: str
    published_text: str
    box_words: str
    picture: str | None
    size: tuple[int, int] | None
    region: Region | None
    candidates: tuple[EmbeddingInput, ...]
    rankings: Mapping[str, tuple[int, ...]]

    @property
    def key(self) -> str:
        return f"{self.set}/{self.row}"


class SetDescription(NamedTuple):
    """An evaluation set. benchmark: "scar", "mmeb" or another family. distribution: "IND", "OOD" or ""."""

    name: str
    benchmark: str
    meta_task: str = ""
    distribution: str = ""


@dataclass(frozen=True, eq=False)
class RankedSet:
    """A set whose inputs are numbers among all distinct inputs of an evaluation. candidates: of every row, in its order."""

    about: SetDescription
    rows: tuple[EvaluationRow, ...]
    queries: Int[Tensor, " rows"]
    candidates: tuple[Int[Tensor, " candidates"], ...]


@dataclass(frozen=True, eq=False)
class InputBatch(Movable):
    """Distinct inputs to embed. keys: their content keys; sources: for messages, where each stands first. Empty where a rank has nothing left."""

    keys: tuple[str, ...]
    sources: tuple[str, ...]
    inputs: EncoderBatch | None

    def __len__(self) -> int:
        return len(self.keys)


class InputPreprocess(Protocol):
    """What an evaluation's data learns from the model (`connect(preprocess)`)."""

    def query(self, row: EvaluationRow) -> EmbeddingInput:
        """What is embedded of a row's query, without pixels."""

    def encoder_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        """Inputs with their pixels, as rows."""

    def unknown(self, keys: Sequence[str]) -> list[str]:
        """Those of the content keys whose embeddings are still wanted."""


@dataclass(frozen=True, eq=False)
class Pictures(Movable):
    """The distinct pictures of a batch, prepared for the two streams; a tuple because sizes may differ.

    vision: for the VLM's tower; segmentation: for the segmentation model. Both are uint8 RGB where the model normalises.
    features: what is stored of each picture; empty where nothing is of any. A stream's features stand in for its pixels, which are None.
        So are the segmentation model's pixels of an image without a prompt, where it reads prompted images alone.
    keys: the content key of each image as it was prepared, "" for an image without one; empty for a batch of images alone.
    """

    vision: tuple[Shaped[Tensor, "3 height width"] | None, ...] = ()
    segmentation: tuple[Shaped[Tensor, "3 size size"] | None, ...] = ()
    features: tuple[PictureFeatures, ...] = ()
    keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        return max(len(self.vision), len(self.segmentation))

    @property
    def stored_features(self) -> tuple[PictureFeatures, ...]:
        """The stored features of each image, in order; `NO_FEATURES` for one without."""
        return self.features or (NO_FEATURES,) * len(self)

    def select(self, indices: Sequence[int]) -> Pictures:
        return Pictures(
            tuple(self.vision[i] for i in indices) if self.vision else (),
            tuple(self.segmentation[i] for i in indices) if self.segmentation else (),
            tuple(self.features[i] for i in indices) if self.features else (),
            tuple(self.keys[i] for i in indices) if self.keys else (),
        )

    def split(self, size: int) -> list[Pictures]:
        """In groups of at most `size`, in order."""
        return [self.select(range(len(self))[start : start + size]) for start in range(0, len(self), size)]

    def with_features(self, features: Sequence[PictureFeatures]) -> Pictures:
        """The same images with frozen features, one entry each, in place of all pixels."""
        nothing = (None,) * len(self)
        return Pictures(nothing if self.vision else (), nothing if self.segmentation else (), tuple(features), self.keys)


@dataclass(frozen=True, eq=False)
class PictureBatch(Movable):
    """Distinct pictures of one shard, for what is stored of them.

    folder: of the shards, and `fingerprint` its content's. shard: the tar's name. keys: the pictures' content keys.
    last: nothing more of the shard comes. A shard of which all is stored comes as one such batch, without pictures.
    """

    folder: str
    fingerprint: str
    shard: str
    keys: tuple[str, ...]
    pictures: Pictures
    last: bool

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, eq=False)
class PromptBatch(Movable):
    """Visual prompts, and which of the batch's pictures each is on."""

    prompts: tuple[VisualPrompt, ...]
    pictures: Int[Tensor, " prompts"]

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> PromptBatch:
        chosen = torch.as_tensor(indices, dtype=torch.long, device=self.pictures.device)
        return PromptBatch(tuple(self.prompts[i] for i in indices), self.pictures[chosen])

    def on(self, pictures: Sequence[int]) -> PromptBatch:
        """The prompts, with their pictures' numbers among the given ones."""
        place = {picture: number for number, picture in enumerate(pictures)}
        numbers = [place[picture] for picture in self.pictures.tolist()]
        return PromptBatch(self.prompts, torch.as_tensor(numbers, dtype=torch.long, device=self.pictures.device))


@dataclass(frozen=True, eq=False)
class EncoderBatch(Movable):
    """Rows to embed, some with a picture and some without, some prompted and some not.

    A *use* is one row's use of one picture in its text: `use_rows` and `use_pictures` say which row and which picture.
    Several rows may use one picture, which is then encoded once. Each of `prompts` becomes segment tokens in front of its row
    (`prompt_rows`); a use may have several prompts on its picture, or none.
    position_ids: as the recipe wants them; None where the backbone finds them in the ids alone.
    use_pictures, prompt_rows: left out where every use has one prompt: then `prompts.pictures` and `use_rows` say it.
    segments: what a frozen segmentation stream sees at each prompt, one prompt each; empty where nothing is known.
    """

    input_ids: Int[Tensor, "rows tokens"]
    attention_mask: Int[Tensor, "rows tokens"]
    pictures: Pictures
    prompts: PromptBatch
    use_rows: Int[Tensor, " uses"]
    position_ids: Int[Tensor, "*axes rows tokens"] | None = None
    use_pictures: Int[Tensor, " uses"] = None  # type: ignore[assignment]  # filled below
    prompt_rows: Int[Tensor, " prompts"] = None  # type: ignore[assignment]  # filled below
    segments: tuple[SegmentFeatures, ...] = ()

    def __post_init__(self) -> None:
        if self.use_pictures is None:
            object.__setattr__(self, "use_pictures", self.prompts.pictures)
        if self.prompt_rows is None:
            object.__setattr__(self, "prompt_rows", self.use_rows)

    def __len__(self) -> int:
        return len(self.input_ids)

    def split(self, size: int) -> tuple[EncoderBatch, ...]:
        """Chunks of at most `size` rows, each with just the pictures it uses."""
        return tuple(self.select(range(start, min(start + size, len(self)))) for start in range(0, len(self), size))

    def select(self, rows: Sequence[int]) -> EncoderBatch:
        """The given rows, in that order, with just the pictures they use; trailing padding is dropped."""
        uses, use_rows = select_owned(self.use_rows, rows)
        prompts, prompt_rows = select_owned(self.prompt_rows, rows)
        used, prompted = self.use_pictures[uses].tolist(), self.prompts.pictures[prompts].tolist()
        pictures = list(dict.fromkeys([*used, *prompted]))
        index = torch.as_tensor(list(rows), dtype=torch.long, device=self.input_ids.device)
        mask = self.attention_mask[index]
        length = int(mask.any(dim=0).nonzero().max()) + 1 if mask.any() else 0
        return EncoderBatch(
            self.input_ids[index][:, :length],
            mask[:, :length],
            self.pictures.select(pictures),
            self.prompts.select(prompts.tolist()).on(pictures),
            use_rows,
            None if self.position_ids is None else self.position_ids[..., index, :length],
            torch.as_tensor([pictures.index(picture) for picture in used], dtype=torch.long, device=index.device),
            prompt_rows,
            tuple(self.segments[prompt] for prompt in prompts.tolist()) if self.segments else (),
        )

    def prompted(self) -> tuple[Pictures, PromptBatch]:
        """The pictures that prompts are on, and the prompts on them."""
        pictures = list(dict.fromkeys(self.prompts.pictures.tolist()))
        return self.pictures.select(pictures), self.prompts.on(pictures)


def select_owned(owners: Int[Tensor, " items"], rows: Sequence[int]) -> tuple[Int[Tensor, " owned"], Int[Tensor, " owned"]]:
    """Return the indices of the items that the given rows own, row by row, and the position of each item's owner in `rows`."""
    of_row: dict[int, list[int]] = {}
    for item, row in enumerate(owners.tolist()):
        of_row.setdefault(row, []).append(item)
    found = [(item, number) for number, row in enumerate(rows) for item in of_row.get(row, ())]
    items, numbers = torch.tensor(found, dtype=torch.long, device=owners.device).reshape(-1, 2).unbind(dim=1)
    return items, numbers


@dataclass(frozen=True, eq=False)
class PairIds(Movable):
    """Content ids of a contrastive batch, by which a loss tells which candidates are no negatives.

    Equal ids mean equal content: a candidate whose id equals that of a query's target is right for that query, too.

    query_ids: of each pair's sample. target_ids: of each pair's target.
    negative_ids: of each hard negative, those of all queries in one list. negative_rows: the pair that each hard negative belongs to.
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
class PairBatch(Movable):
    """A contrastive batch: row i of `targets` is right for row i of `queries`.

    negatives: the hard negatives of all queries, in one batch; `ids.negative_rows` says whose each is. None without any.
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
class EmbeddingBatch(Movable):
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
class RankingBatch(Movable):
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
class RankingOutput(Movable):
    """What evaluation returns for a `RankingBatch`, mode by mode, sample by sample (`m * len(samples) + i`).

    scores: cosine with each candidate of the sample, in the sample's order.
    mask_logits: the segmentation model's mask for each row that has a picture (`mask_rows`); None without the stream.
    """

    scores: tuple[Float[Tensor, " candidates"], ...]
    mask_logits: Float[Tensor, "masks height width"] | None = None
    mask_rows: Int[Tensor, " masks"] | None = None


@dataclass(frozen=True, eq=False)
class RegionBatch(Movable):
    """Prompts and the regions they mean, for what learns from regions alone (prompt encoder, segmentation).

    masks: float in {0, 1}, over the whole picture at `mask_size`; boxes: xyxy, normalised.
    tasks, modes: of every row, its dataset and how its region is pointed at.
    """

    keys: tuple[str, ...]
    pictures: Pictures
    prompts: PromptBatch
    boxes: Float[Tensor, "prompts 4"]
    masks: Float[Tensor, "prompts height width"]
    modes: tuple[str, ...]
    tasks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)


class Preprocess(Protocol):
    """What data learns from the model: how samples become one of its batches (`connect(preprocess)`)."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """By stream ("segmentation", "vision"), of what the features depend on that may be stored of a picture."""

    def train(self, samples: Sequence[Sample]) -> Any:
        """A training batch. Random choices (which kind of prompt) come from torch's generator."""

    def evaluate(self, samples: Sequence[RankingSample]) -> Any:
        """An evaluation batch, with no random choice but what the sample's key seeds."""

    def pictures(self, images: Sequence[UInt8[Tensor, "3 height width"]]) -> Pictures:
        """Pictures alone, as the streams read them."""


@dataclass(frozen=True, eq=False)
class PromptTokens(Movable):
    """Prompts as the segmentation model reads them, d = its width.

    A row is a list of tokens of its own length (`valid` marks the real ones, which stand first).
    image_positions: the positional encoding of the feature map's places, from the same matrix.
    drawn: the prompt as maps (boxes, inside points, outside points, masks), in [0, 1], four times as fine as the feature map, where the
        encoder draws it.
    """

    sparse: Float[Tensor, "prompts tokens d"]
    valid: Bool[Tensor, "prompts tokens"]
    dense: Float[Tensor, "prompts d height width"]
    image_positions: Float[Tensor, "d height width"]
    pictures: Int[Tensor, " prompts"]
    drawn: Float[Tensor, "prompts 4 map_height map_width"] | None = None

    @property
    def focus(self) -> Float[Tensor, "prompts height width"] | None:
        """How much of each place of the feature map the prompt touches, in [0, 1], where the encoder draws it."""
        if self.drawn is None:
            return None
        touched = self.drawn[:, [0, 1, 3]].sum(dim=1, keepdim=True).clamp(max=1)
        return avg_pool2d(touched, self.drawn.shape[-1] // self.image_positions.shape[-1])[:, 0]


@dataclass(frozen=True, eq=False)
class SegmentFeatures(Movable):
    """What the segmentation model knows of each prompt.

    embedding: the prompt-conditioned image embedding (image side of the two-way transformer), the paper's feature.
    image: the unprompted features of the same picture, at whatever resolution and width the backbone gives.
    mask_logits: the predicted mask over the whole picture (> 0 is inside); None where the backbone predicts none.
    image_positions: the positional encoding of `embedding`'s places.
    focus: `PromptTokens.focus`.
    """

    embedding: Float[Tensor, "prompts d height width"]
    image: Float[Tensor, "prompts channels image_height image_width"]
    mask_logits: Float[Tensor, "prompts mask_height mask_width"] | None
    image_positions: Float[Tensor, "d height width"]
    focus: Float[Tensor, "prompts height width"] | None = None

    def split(self) -> list[SegmentFeatures]:
        """Of each prompt alone."""
        return [self.only(slice(index, index + 1)) for index in range(len(self.embedding))]

    def only(self, chosen: slice) -> SegmentFeatures:
        logits, focus = (None if field is None else field[chosen] for field in (self.mask_logits, self.focus))
        return replace(self, embedding=self.embedding[chosen], image=self.image[chosen], mask_logits=logits, focus=focus)

    @classmethod
    def join(cls, parts: Sequence[SegmentFeatures]) -> SegmentFeatures:
        """Of all prompts of `parts`, which have the same fields and one feature map."""
        logits = [part.mask_logits for part in parts if part.mask_logits is not None]
        focus = [part.focus for part in parts if part.focus is not None]
        embedding, image = torch.cat([part.embedding for part in parts]), torch.cat([part.image for part in parts])
        return cls(embedding, image, torch.cat(logits) if logits else None, parts[0].image_positions, torch.cat(focus) if focus else None)


class FeatureWidths(NamedTuple):
    """Channels of `SegmentFeatures`: of `embedding` and of `image`."""

    embedding: int
    image: int


@dataclass(frozen=True, eq=False)
class SegmentTokens(Movable):
    """What a connector makes of `SegmentFeatures`, one row a prompt.

    tokens: for the language model, in front of the row.
    summary: a vector that joins the row's pooled state behind the language model; None without that short way.
    """

    tokens: Float[Tensor, "prompts tokens hidden"]
    summary: Float[Tensor, "prompts hidden"] | None = None


@dataclass(frozen=True, eq=False)
class TokenSequence(Movable):
    """What a language model reads: embeddings, which of them are real, and their positions, always moved together.

    position_ids: [rows, tokens], or [axes, rows, tokens] for a model with several position axes.
    added: one for each of the model's first layers, what is added to its states behind it, at the places of `added_places`, row by row
        (DeepStack); empty for a model that reads a picture's tokens at its input alone.
    """

    embeds: Float[Tensor, "rows tokens hidden"]
    attention_mask: Int[Tensor, "rows tokens"]
    position_ids: Int[Tensor, "*axes rows tokens"]
    added: tuple[Float[Tensor, "places hidden"], ...] = ()
    added_places: Bool[Tensor, "rows tokens"] | None = None

    def prepend(self, tokens: Float[Tensor, "chosen new hidden"], rows: Int[Tensor, " chosen"]) -> TokenSequence:
        """`tokens` in front of the given rows, at position 0; a row with less of them than another gets padding before them.

        A row that is given several times has them all, in the order in which they are given.
        """
        if not len(rows):
            return self
        earlier = (rows[:, None] == rows).tril(diagonal=-1).sum(dim=1)
        given = torch.zeros(len(self.embeds), dtype=torch.long, device=rows.device).index_add(0, rows, torch.ones_like(rows))
        most = int(given.max())
        places = (rows, most - given[rows] + earlier)
        embeds = self.embeds.new_zeros(len(self.embeds), most, *tokens.shape[1:]).index_put(places, tokens.to(self.embeds.dtype))
        mask = self.attention_mask.new_zeros(len(self.embeds), most).index_put(places, self.attention_mask.new_ones(len(rows)))
        front = mask.repeat_interleave(tokens.shape[1], dim=1)
        positions = self.position_ids.new_zeros(*self.position_ids.shape[:-1], front.shape[1])
        return TokenSequence(
            torch.cat([embeds.flatten(1, 2), self.embeds], dim=1),
            torch.cat([front, self.attention_mask], dim=1),
            torch.cat([positions, self.position_ids], dim=-1),
            self.added,
            None if self.added_places is None else torch.cat([torch.zeros_like(front, dtype=torch.bool), self.added_places], dim=1),
        )
