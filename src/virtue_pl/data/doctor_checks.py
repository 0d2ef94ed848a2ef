"""What can be wrong with a record, found by looking at everything in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.data.atomic import digest
from virtue_pl.data.picture_hashes import difference_hash
from virtue_pl.data.records import Row, content_key, read_region
from virtue_pl.images import decode
from virtue_pl.types import DataError, Region

APPLE_DOUBLE = b"\x00\x05\x16\x07"
WARNINGS = ("duplicate pair", "looks like a training picture", "AppleDouble leftover beside the pictures")
"""Problems that a training survives and that may be meant; all others are errors."""

MASK_OVERLAP = 0.5
"""A mask whose own box overlaps the row's box by less (intersection over union) is another thing's."""

_WORD = re.compile(r"\w+|[^\w\s]")

CountTokens = Callable[[str], int]


def count_words(text: str) -> int:
    """Words and punctuation marks, where no tokenizer is given."""
    return len(_WORD.findall(text))


@dataclass(frozen=True)
class Finding:
    """One problem: its kind, the row or record that has it, the path of its picture where one is known, and what exactly was found."""

    kind: str
    key: str
    detail: str
    image: str = ""

    @property
    def is_warning(self) -> bool:
        return self.kind in WARNINGS


@dataclass
class Checkup:
    """What was seen of one folder of shards, or of one official file.

    exact, near: the pictures' content keys and difference hashes, each with its record's key. sizes: pictures by their shorter side,
    lengths: texts by their tokens, both by the power of two at or below.
    """

    name: str
    kind: str
    max_pixels: int
    count_tokens: CountTokens = count_words
    rows: int = 0
    pictures: int = 0
    findings: list[Finding] = field(default_factory=list)
    exact: dict[str, str] = field(default_factory=dict)
    near: dict[str, int] = field(default_factory=dict)
    sizes: Counter[int] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    show: Callable[[Finding, UInt8[Tensor, "3 height width"] | None, Sequence[float] | None], None] = lambda finding, image, box: None
    """Called with each finding, the picture if it could be decoded, and the row's box in its pixels."""
    _pairs: dict[str, str] = field(default_factory=dict)

    def skip(self, error: DataError, rows: int = 1) -> None:
        """What a converter or the stream would leave out; the problem's words before ":" are its kind."""
        self.find(Finding(error.problem.partition(":")[0], error.key, error.problem))

    def find(self, finding: Finding, image: UInt8[Tensor, "3 height width"] | None = None, box: Sequence[float] | None = None) -> None:
        self.findings.append(finding)
        self.show(finding, image, box)

    def add(self, pictures: Sequence[tuple[bytes, str]], image: str, rows: Sequence[Mapping[str, Any]], paths: Sequence[str] = ()) -> None:
        """Looks at one record, see `RecordSink`."""
        self.rows += len(rows)
        keys = [content_key(data) for data, _ in pictures]
        named = paths or [image, *(f"{image}, picture {number}" for number in range(1, len(pictures)))]
        decoded = [self.picture(data, key, path) for (data, _), key, path in zip(pictures, keys, named, strict=False)]
        for fields in rows:
            row = Row(f"{self.name}/{fields['row']}", "", fields)
            shown = decoded[0] if decoded else None
            self.region(row, shown, image)
            self.texts(row, keys, shown, image)

    def picture(self, data: bytes, key: str, image: str) -> UInt8[Tensor, "3 height width"] | None:
        """The decoded picture, or None with a finding."""
        self.pictures += 1
        name = f"{self.name} ({image})"
        try:
            if not data:
                raise DataError(name, "empty picture: it has no bytes")
            if data.startswith(APPLE_DOUBLE):
                raise DataError(name, "AppleDouble leftover: what macOS leaves beside a file stands in the picture's place")
            found = decode(data, name, self.max_pixels)
        except DataError as error:
            self.find(Finding(error.problem.partition(":")[0], name, error.problem, image))
            return None
        self.sizes[power_of_two(min(found.shape[1:]))] += 1
        self.exact.setdefault(key, name)
        looks = difference_hash(found)
        if looks is not None:
            self.near.setdefault(name, looks)
        return found

    def region(self, row: Row, shown: UInt8[Tensor, "3 height width"] | None, image: str) -> None:
        """Whether the row's box and mask can be, and belong together."""
        if shown is None or row.fields.get("box") is None:
            return
        try:
            region = read_region(row, (shown.shape[1], shown.shape[2]))
        except DataError as error:
            self.find(Finding(region_kind(error.problem), row.key, error.problem, image), shown, row.fields["box"])
            return
        overlap = mask_overlap(region)
        if overlap < MASK_OVERLAP:
            detail = f"the mask's own box overlaps the row's by {overlap:.2f}, expected {MASK_OVERLAP} or more"
            self.find(Finding("mask elsewhere than its box", row.key, detail, image), shown, row.fields["box"])

    def texts(self, row: Row, keys: Sequence[str], shown: UInt8[Tensor, "3 height width"] | None, image: str) -> None:
        """Lengths, pairs that occurred before, and right answers that stand among the wrong ones."""
        answers = row.fields.get("candidates") or [row.fields.get("target"), *row.fields.get("negatives", ())]
        query, (right, *wrong) = identity(row.fields.get("query"), keys), [identity(answer, keys) for answer in answers]
        for text, _ in (query, right, *wrong):
            self.lengths[power_of_two(self.count_tokens(text))] += 1
        if right in wrong:
            self.find(Finding("caption equals a distractor", row.key, f"{right[0]!r} is right and wrong", image), shown, row.fields.get("box"))
        pair = digest(str((query, right, row.fields.get("box"), keys[:1] if isinstance(row.fields.get("query"), str) else None)))
        first = self._pairs.setdefault(pair, row.key)
        if first != row.key:
            self.find(Finding("duplicate pair", row.key, f"the same query and answer as {first}", image), shown, row.fields.get("box"))


def identity(stored: Any, keys: Sequence[str]) -> tuple[str, str]:
    """A text without what does not matter (case, white space) and its picture's content key, of a caption or a [TEXT, NUMBER]."""
    text, number = stored if isinstance(stored, list) and len(stored) == 2 else (stored, None)
    picture = keys[number] if isinstance(number, int) and number < len(keys) else ""
    return " ".join(str(text or "").casefold().split()), picture


def region_kind(problem: str) -> str:
    """A short name for what is wrong with a region."""
    for words, kind in (("outside the picture", "box outside the picture"), ("no area", "box without area"), ("mask is empty", "empty mask")):
        if words in problem:
            return kind
    return "mask does not match" if "mask" in problem else "no box"


def mask_overlap(region: Region) -> float:
    """Intersection over union of the region's box and the box around its mask; 1 without a mask."""
    if region.mask is None:
        return 1.0
    height, width = region.mask.shape
    rows, columns = region.mask.any(dim=1).nonzero().flatten(), region.mask.any(dim=0).nonzero().flatten()
    own = torch.tensor([columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height])
    low, high = torch.maximum(own[:2], region.box[:2]), torch.minimum(own[2:], region.box[2:])
    shared = (high - low).clamp(min=0).prod()
    areas = (own[2:] - own[:2]).prod() + (region.box[2:] - region.box[:2]).prod()
    return float(shared / (areas - shared))


def power_of_two(value: int) -> int:
    """The greatest power of two that is not above the value; 0 for 0."""
    return 1 << value.bit_length() - 1 if value else 0
