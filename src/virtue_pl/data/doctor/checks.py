"""The check-up of one folder of shards or one official file: every problem in its records."""

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

from virtue_pl.data.doctor.images import CheckImages, ImageCheck, check_images_here, decode_or_none
from virtue_pl.data.io.atomic import digest
from virtue_pl.data.shards.records import Row, content_key, read_region
from virtue_pl.types import DataError, Region

WARNINGS = (
    "duplicate pair",
    "looks like a training image",
    "AppleDouble leftover beside the images",
    "very long image",
    "image token in a text",
)
"""Problems that a training survives and that may be intended; all others are errors."""

MASK_OVERLAP = 0.5
"""A mask whose own box overlaps the row's by less (intersection over union) belongs to another thing."""

MAX_RATIO = 200
"""Qwen-VL models read no image whose longer side is more than so many times the shorter one."""

MODEL_TOKENS = ("<image>",)
"""Words that stand for an image in some models (SmolVLM, LLaVA), which therefore read no text that holds them."""

_WORD = re.compile(r"\w+|[^\w\s]")

CountTokens = Callable[[str], int]
ReadImage = Callable[[], UInt8[Tensor, "3 height width"] | None] | None
Box = Sequence[float] | None


def count_words(text: str) -> int:
    """Return the number of words and punctuation marks, where no tokenizer is given."""
    return len(_WORD.findall(text))


@dataclass(frozen=True)
class Finding:
    """One problem of a row or record.

    Example:
        >>> Finding("duplicate pair", "SCAR_mini/7", "the same query and answer as SCAR_mini/3").is_warning
        True
    """

    kind: str
    key: str
    """The row or record that has the problem."""
    detail: str
    """Details of the finding, in words."""
    image: str = ""
    """The path of the row's image; "" where none is at hand."""

    @property
    def is_warning(self) -> bool:
        """Return whether the problem is one of `WARNINGS`."""
        return self.kind in WARNINGS


ReportFinding = Callable[[Finding, ReadImage, Box], None]
CompleteFinding = Callable[[Finding, ReadImage, Box], tuple[Finding, ReadImage, Box]]
ReportProblem = Callable[[str, str], None]
"""Called with a problem's kind and what exactly was found."""


@dataclass
class Checkup:
    """The findings and counts of one folder of shards, or of one official file; a `RecordSink`.

    Example:
        >>> checkup = Checkup("SCAR_mini", "pairs", max_pixels=10_000)
        >>> checkup.report(Finding("damaged mask", "SCAR_mini/7", "its run lengths do not add up to 4 x 4 pixels"))
        >>> [finding.key for finding in checkup.findings]
        ['SCAR_mini/7']
    """

    name: str
    kind: str
    """Either "pairs" or "rankings", see `Manifest`."""
    max_pixels: int
    count_tokens: CountTokens = count_words
    rows: int = 0
    images: int = 0
    findings: list[Finding] = field(default_factory=list)
    names_by_content: dict[str, str] = field(default_factory=dict)
    """The record of each image, by the image's content key."""
    left_out: list[DataError] = field(default_factory=list)
    """Rows that a conversion would leave out, in order."""
    hashes_by_name: dict[str, int] = field(default_factory=dict)
    """The difference hash of each image, by its record."""
    sizes: Counter[int] = field(default_factory=Counter)
    """Number of images by their shorter side in pixels, rounded down to a power of two."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Number of texts by their tokens, rounded down to a power of two."""
    on_finding: ReportFinding = lambda finding, image, box: None
    """Called with each finding, a reader of its image (None where there is none), and the row's box in its pixels."""
    check_images: CheckImages = check_images_here
    max_pending: int = 0
    """Number of records that may wait for `check_images`; the findings are the same for any."""
    complete_finding: CompleteFinding = lambda finding, image, box: (finding, image, box)
    """Applied to the findings of records added from now on, before they are reported."""
    reread_image: Callable[[str], UInt8[Tensor, "3 height width"] | None] = lambda path: None
    """Reads an image once more, by its path."""
    _first_rows: dict[str, str] = field(default_factory=dict)
    """The first row with each pair of query and answer, by the pair's digest."""
    _pending: deque[Callable[[], None]] = field(default_factory=deque)

    def skip(self, error: DataError, rows: int = 1) -> None:
        """Report what a converter or the stream would leave out; the problem's words before ":" are its kind."""
        self.left_out.append(error)
        self.report(Finding(error.problem.partition(":")[0], error.key, error.problem))

    def report(self, finding: Finding, image: ReadImage = None, box: Box = None) -> None:
        """Add a finding, behind those of the records that are pending."""
        completed = self.complete_finding(finding, image, box)
        self._enqueue(lambda: self._record(*completed))

    def _record(self, finding: Finding, image: ReadImage, box: Box) -> None:
        self.findings.append(finding)
        self.on_finding(finding, image, box)

    def add(
        self,
        images: Sequence[tuple[bytes, str]],
        image_path: str,
        rows: Sequence[Mapping[str, Any]],
        paths: Sequence[str] = (),
    ) -> None:
        """Check one record, see `RecordSink`."""
        data = [image for image, _ in images]
        names = paths or [image_path, *(f"{image_path}, image {number}" for number in range(1, len(images)))]
        wait_for_checks, complete = self.check_images(data, self.max_pixels), self.complete_finding

        def report(finding: Finding, image: ReadImage, box: Box) -> None:
            self._record(*complete(finding, image, box))

        self._enqueue(lambda: self._check_record(data, wait_for_checks(), rows, list(names), report))

    def drain(self) -> None:
        """Wait for the images that are still being checked, and check their records."""
        while self._pending:
            self._pending.popleft()()

    def _enqueue(self, step: Callable[[], None]) -> None:
        self._pending.append(step)
        while len(self._pending) > self.max_pending:
            self._pending.popleft()()

    def _check_record(
        self,
        data: Sequence[bytes],
        checks: Sequence[ImageCheck],
        rows: Sequence[Mapping[str, Any]],
        paths: Sequence[str],
        report_finding: ReportFinding,
    ) -> None:
        """Check a record whose images have been checked."""
        self.rows += len(rows)
        keys = [content_key(image) for image in data]
        for key, check, path in zip(keys, checks, paths, strict=False):
            self._check_image(key, check, path, report_finding)
        sound = bool(checks) and not checks[0].problem
        image_path = paths[0] if paths else ""
        image = partial(decode_or_none, data[0], self.max_pixels) if sound else None
        for fields in rows:
            row = Row(f"{self.name}/{fields['row']}", "", fields)
            report = problem_reporter(row, image_path, image, report_finding)
            if sound and fields.get("box") is not None:
                self._check_region(row, checks[0].size, report)
            self._check_texts(row, keys, report)

    def _check_image(self, key: str, check: ImageCheck, path: str, report_finding: ReportFinding) -> None:
        self.images += 1
        name = f"{self.name} ({path})"
        if check.problem:
            report_finding(Finding(check.problem.partition(":")[0], name, check.problem, path), None, None)
            return
        self.sizes[power_of_two(min(check.size))] += 1
        if max(check.size) > MAX_RATIO * min(check.size):
            detail = f"{check.size[1]}x{check.size[0]} pixels, of which a Qwen-VL reads at most 1:{MAX_RATIO}"
            report_finding(Finding("very long image", name, detail, path), None, None)
        self.names_by_content.setdefault(key, name)
        if check.difference_hash is not None:
            self.hashes_by_name.setdefault(name, check.difference_hash)

    def _check_region(self, row: Row, size: tuple[int, int], report: ReportProblem) -> None:
        """Check that the row's box and mask are possible, and belong together."""
        try:
            region = read_region(row, size)
        except DataError as error:
            report(name_region_problem(error.problem), error.problem)
            return
        overlap = mask_overlap(region)
        if overlap < MASK_OVERLAP:
            report(
                "mask elsewhere than its box",
                f"the mask's own box overlaps the row's by {overlap:.2f}, expected {MASK_OVERLAP} or more",
            )

    def _check_texts(self, row: Row, keys: Sequence[str], report: ReportProblem) -> None:
        """Count lengths; find pairs that occurred before, and right answers among the wrong ones."""
        stored = row.fields.get("candidates") or [row.fields.get("target"), *row.fields.get("negatives", ())]
        query = normalize_answer(row.fields.get("query"), keys)
        right, *wrong = [normalize_answer(answer, keys) for answer in stored]
        token = next((token for token in MODEL_TOKENS for text, _ in (query, right, *wrong) if token in text), None)
        if token is not None:
            report("image token in a text", f"{token} stands for an image in some models, which leave the row out")
        for text, _ in (query, right, *wrong):
            self.lengths[power_of_two(self.count_tokens(text))] += 1
        if right in wrong:
            report("caption equals a distractor", f"{right[0]!r} is right and wrong")
        image = keys[:1] if isinstance(row.fields.get("query"), str) else None
        prompt = [row.fields["prompt"]] if row.fields.get("prompt") else []
        first = self._first_rows.setdefault(digest(str((query, right, row.fields.get("box"), image, *prompt))), row.key)
        if first != row.key:
            report("duplicate pair", f"the same query and answer as {first}")


def problem_reporter(row: Row, image_path: str, image: ReadImage, report_finding: ReportFinding) -> ReportProblem:
    """Return a function that reports problems of one row."""
    return lambda kind, detail: report_finding(Finding(kind, row.key, detail, image_path), image, row.fields.get("box"))


def normalize_answer(stored: Any, keys: Sequence[str]) -> tuple[str, str]:
    """Return a text without differences of case and white space, and its image's content key ("" for none).

    `stored` is a caption, or [TEXT, NUMBER OF AN IMAGE OR NULL], with a list of numbers where there are several images,
    and a prompt as a third entry where there is one; `keys` are the content keys of the record's images.
    """
    text, numbers, *prompt = stored if isinstance(stored, list) and len(stored) in (2, 3) else (stored, None)
    several = numbers if isinstance(numbers, list) else [numbers]
    images = [keys[number] for number in several if isinstance(number, int) and number < len(keys)]
    return " ".join(str(text or "").casefold().split()), " ".join([*images, *map(str, prompt)])


def name_region_problem(problem: str) -> str:
    """Return a short name for a problem of a region."""
    for phrase, kind in (
        ("outside the image", "box outside the image"),
        ("no area", "box without area"),
        ("mask is empty", "empty mask"),
    ):
        if phrase in problem:
            return kind
    return "mask does not match" if "mask" in problem else "no box"


def mask_overlap(region: Region) -> float:
    """Return the intersection over union of the region's box and the box around its mask; 1 without a mask."""
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
    """Return the greatest power of two that is not above the value; 0 for 0."""
    return 1 << value.bit_length() - 1 if value else 0
