"""What can be wrong with a record, found by looking at everything in it."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.data.doctor.images import Look, Looked, at_once, shown
from virtue_pl.data.io.atomic import digest
from virtue_pl.data.shards.records import Row, content_key, read_region
from virtue_pl.types import DataError, Region

WARNINGS = ("duplicate pair", "looks like a training image", "AppleDouble leftover beside the images")
"""Problems that a training survives and that may be meant; all others are errors."""

MASK_OVERLAP = 0.5
"""A mask whose own box overlaps the row's box by less (intersection over union) is another thing's."""

_WORD = re.compile(r"\w+|[^\w\s]")

CountTokens = Callable[[str], int]
Shown = Callable[[], UInt8[Tensor, "3 height width"] | None] | None
Box = Sequence[float] | None


def count_words(text: str) -> int:
    """Words and punctuation marks, where no tokenizer is given."""
    return len(_WORD.findall(text))


@dataclass(frozen=True)
class Finding:
    """One problem: its kind, the row or record that has it, the path of its image where one is known, and what exactly
    was found.
    """

    kind: str
    key: str
    detail: str
    image: str = ""

    @property
    def is_warning(self) -> bool:
        return self.kind in WARNINGS


Find = Callable[[Finding, Shown, Box], None]
Tell = Callable[[str, str], None]
"""Called with a problem's kind and what exactly was found."""


@dataclass
class Checkup:
    """What was seen of one folder of shards, or of one official file.

    exact, near: the images' content keys and difference hashes, each with its record's key. sizes: images by their
    shorter side,
    lengths: texts by their tokens, both by the power of two at or below.
    """

    name: str
    kind: str
    max_pixels: int
    count_tokens: CountTokens = count_words
    rows: int = 0
    images: int = 0
    findings: list[Finding] = field(default_factory=list)
    exact: dict[str, str] = field(default_factory=dict)
    near: dict[str, int] = field(default_factory=dict)
    sizes: Counter[int] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    show: Callable[[Finding, Shown, Box], None] = lambda finding, image, box: None
    """Called with each finding, what gives the image (None where there is none), and the row's box in its pixels."""
    look: Look = at_once
    ahead: int = 0
    """How many records may wait for `look`; what is found is the same for any number."""
    complete: Callable[[Finding, Shown, Box], tuple[Finding, Shown, Box]] = lambda finding, image, box: (
        finding,
        image,
        box,
    )
    """What is done to the findings of what is added from now on, before they are shown."""
    again: Callable[[str], UInt8[Tensor, "3 height width"] | None] = lambda path: None
    """Reads an image once more, by its path."""
    _pairs: dict[str, str] = field(default_factory=dict)
    _waiting: deque[Callable[[], None]] = field(default_factory=deque)

    def skip(self, error: DataError, rows: int = 1) -> None:
        """What a converter or the stream would leave out; the problem's words before ":" are its kind."""
        self.find(Finding(error.problem.partition(":")[0], error.key, error.problem))

    def find(self, finding: Finding, image: Shown = None, box: Box = None) -> None:
        """Takes a finding in, behind those of the records that wait."""
        completed = self.complete(finding, image, box)
        self._later(lambda: self._found(*completed))

    def _found(self, finding: Finding, image: Shown, box: Box) -> None:
        self.findings.append(finding)
        self.show(finding, image, box)

    def add(
        self,
        images: Sequence[tuple[bytes, str]],
        image_path: str,
        rows: Sequence[Mapping[str, Any]],
        paths: Sequence[str] = (),
    ) -> None:
        """Looks at one record, see `RecordSink`."""
        data = [image for image, _ in images]
        named = paths or [image_path, *(f"{image_path}, image {number}" for number in range(1, len(images)))]
        answer, complete = self.look(data, self.max_pixels), self.complete
        self._later(
            lambda: self._looked(data, answer(), rows, list(named), lambda *found: self._found(*complete(*found)))
        )

    def settle(self) -> None:
        """Waits for what is still being looked at."""
        while self._waiting:
            self._waiting.popleft()()

    def _later(self, step: Callable[[], None]) -> None:
        self._waiting.append(step)
        while len(self._waiting) > self.ahead:
            self._waiting.popleft()()

    def _looked(
        self,
        data: Sequence[bytes],
        seen: Sequence[Looked],
        rows: Sequence[Mapping[str, Any]],
        paths: Sequence[str],
        find: Find,
    ) -> None:
        """Checks a record whose images were looked at."""
        self.rows += len(rows)
        keys = [content_key(image) for image in data]
        for key, looked, path in zip(keys, seen, paths, strict=False):
            self._image(key, looked, path, find)
        sound = bool(seen) and not seen[0].problem
        image_path, image = (paths[0] if paths else ""), (partial(shown, data[0], self.max_pixels) if sound else None)
        for fields in rows:
            row = Row(f"{self.name}/{fields['row']}", "", fields)
            tell = teller(row, image_path, image, find)
            if sound and fields.get("box") is not None:
                self._region(row, seen[0].size, tell)
            self._texts(row, keys, tell)

    def _image(self, key: str, looked: Looked, path: str, find: Find) -> None:
        self.images += 1
        name = f"{self.name} ({path})"
        if looked.problem:
            find(Finding(looked.problem.partition(":")[0], name, looked.problem, path), None, None)
            return
        self.sizes[power_of_two(min(looked.size))] += 1
        self.exact.setdefault(key, name)
        if looked.looks is not None:
            self.near.setdefault(name, looked.looks)

    def _region(self, row: Row, size: tuple[int, int], tell: Tell) -> None:
        """Whether the row's box and mask can be, and belong together."""
        try:
            region = read_region(row, size)
        except DataError as error:
            tell(region_kind(error.problem), error.problem)
            return
        overlap = mask_overlap(region)
        if overlap < MASK_OVERLAP:
            tell(
                "mask elsewhere than its box",
                f"the mask's own box overlaps the row's by {overlap:.2f}, expected {MASK_OVERLAP} or more",
            )

    def _texts(self, row: Row, keys: Sequence[str], tell: Tell) -> None:
        """Lengths, pairs that occurred before, and right answers that stand among the wrong ones."""
        answers = row.fields.get("candidates") or [row.fields.get("target"), *row.fields.get("negatives", ())]
        query, (right, *wrong) = identity(row.fields.get("query"), keys), [identity(answer, keys) for answer in answers]
        for text, _ in (query, right, *wrong):
            self.lengths[power_of_two(self.count_tokens(text))] += 1
        if right in wrong:
            tell("caption equals a distractor", f"{right[0]!r} is right and wrong")
        pair = digest(
            str((query, right, row.fields.get("box"), keys[:1] if isinstance(row.fields.get("query"), str) else None))
        )
        first = self._pairs.setdefault(pair, row.key)
        if first != row.key:
            tell("duplicate pair", f"the same query and answer as {first}")


def teller(row: Row, image_path: str, image: Shown, find: Find) -> Tell:
    """Tells of problems of one row."""
    return lambda kind, detail: find(Finding(kind, row.key, detail, image_path), image, row.fields.get("box"))


def identity(stored: Any, keys: Sequence[str]) -> tuple[str, str]:
    """A text without what does not matter (case, white space) and its image's content key, of a caption or a [TEXT,
    NUMBER].
    """
    text, number = stored if isinstance(stored, list) and len(stored) == 2 else (stored, None)
    image = keys[number] if isinstance(number, int) and number < len(keys) else ""
    return " ".join(str(text or "").casefold().split()), image


def region_kind(problem: str) -> str:
    """A short name for what is wrong with a region."""
    for words, kind in (
        ("outside the image", "box outside the image"),
        ("no area", "box without area"),
        ("mask is empty", "empty mask"),
    ):
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
