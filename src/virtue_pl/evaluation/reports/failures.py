"""Failures of an evaluation by kind of distractor, with their images and prompts drawn."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from virtue_pl.types import DataError, EmbeddingInput, EvaluationRow, RankedSet, Region

IMAGE_SIZE = 240
"""Longer edge of the drawn images, in pixels."""
MAX_OF_KIND, MAX_FAILURES = 6, 60
"""Number of failures drawn of each kind of each set, and in all."""
RED = (230, 30, 30)


class ImageLibrary(Protocol):
    """Decoded images by their content key.

    Example:
        >>> library.image(key).shape  # doctest: +SKIP
        torch.Size([3, 480, 640])
    """

    def image(self, key: str) -> UInt8[Tensor, "3 height width"]:
        """Return the decoded image as in its file."""
        ...


class RenderedInput(NamedTuple):
    """Input of a model as a page shows it. image: a JPEG as a data URL, or "".

    Example:
        >>> RenderedInput("a fox", image="").text
        'a fox'
    """

    text: str
    image: str


class Failure(NamedTuple):
    """Query whose right candidate did not come first.

    kind: kind of the distractor that was chosen. rank: rank of the right candidate, from 0. scores: those of the chosen
    and of the right candidate.

    Example:
        >>> fox, boat = RenderedInput("a fox", ""), RenderedInput("a boat", "")
        >>> Failure("ADE20K, row 3", "object", RenderedInput("find it", ""), boat, fox, rank=1, scores=(0.6, 0.5)).kind
        'object'
    """

    name: str
    kind: str
    query: RenderedInput
    chosen: RenderedInput
    right: RenderedInput
    rank: int
    scores: tuple[float, float]


class Failures(NamedTuple):
    """Failures of an evaluation.

    examples: the failures that are drawn. counts: (set, kind) -> number of queries for which such a distractor was
    chosen.

    Example:
        >>> Failures([], {("ADE20K", "object"): 2}).counts["ADE20K", "object"]
        2
    """

    examples: list[Failure]
    counts: dict[tuple[str, str], int]


def failures_of(lines: Iterable[Mapping[str, Any]], sets: Sequence[RankedSet], library: ImageLibrary) -> Failures:
    """Count all failures among the lines of predictions.jsonl, and draw the first of each kind.

    A right candidate that ties with the chosen one counts as wrong.
    """
    rows = {(ranked.about.name, row.row): row for ranked in sets for row in ranked.rows}
    counts: Counter[tuple[str, str]] = Counter()
    examples: list[Failure] = []
    for line in lines:
        rank = line["ranks"]["hit@1"][0]
        if not rank:
            continue
        row = rows[line["set"], line["row"]]
        chosen = next(index for index in line["ranking"] if index in row.rankings["hit@1"])
        kind = kind_of(row, chosen)
        counts[line["set"], kind] += 1
        if counts[line["set"], kind] <= MAX_OF_KIND and len(examples) < MAX_FAILURES:
            scores = score(line, chosen), score(line, 0)
            rendered = [render_candidate(row.candidates[index], library) for index in (chosen, 0)]
            examples.append(
                Failure(
                    f"{line['set']}, row {line['row']}",
                    kind,
                    render_query(row, library),
                    rendered[0],
                    rendered[1],
                    rank,
                    scores,
                )
            )
    return Failures(sorted(examples, key=lambda failure: failure.kind), dict(counts))


def score(line: Mapping[str, Any], candidate: int) -> float:
    """Return the score of a candidate, by index, from a line that lists it; see `prediction_lists`."""
    if "scores" in line:
        return float(line["scores"][candidate])
    return float(line["ranking_scores"][line["ranking"].index(candidate)] if candidate else line["gold_score"])


def kind_of(row: EvaluationRow, chosen: int) -> str:
    """Return the name of the shortest ranking that has the chosen distractor, such as "relation"; "any" if none."""
    named = [
        (len(candidates), name)
        for name, candidates in row.rankings.items()
        if chosen in candidates[1:] and not name.startswith("hit@1")
    ]
    return min(named)[1] if named else "any"


def render_query(row: EvaluationRow, library: ImageLibrary) -> RenderedInput:
    """Return a row's query with its region drawn."""
    return RenderedInput(row.text.strip(), render_image(row.image, row.region, library) if row.image else "")


def render_candidate(item: EmbeddingInput, library: ImageLibrary) -> RenderedInput:
    """Return a candidate with its image."""
    return RenderedInput(item.text.strip(), render_image(item.image_keys[0], None, library) if item.image_keys else "")


def render_image(key: str, region: Region | None, library: ImageLibrary) -> str:
    """Return the image with its region's box and mask, as a data URL; "" where its file is gone."""
    try:
        pixels = library.image(key)
    except DataError:
        return ""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((IMAGE_SIZE, IMAGE_SIZE))
    if region is not None:
        draw_region(image, region)
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def draw_region(image: Image.Image, region: Region) -> None:
    """Draw the region: its mask as a tint, its box as a line."""
    if region.mask is not None:
        mask = Image.fromarray(region.mask.numpy().astype("uint8") * 90).resize(image.size)
        image.paste(RED, (0, 0), mask)
    x1, y1, x2, y2 = region.box.tolist()
    corners = [
        round(x1 * image.width),
        round(y1 * image.height),
        round(x2 * image.width) - 1,
        round(y2 * image.height) - 1,
    ]
    ImageDraw.Draw(image).rectangle(
        (corners[0], corners[1], max(corners[0], corners[2]), max(corners[1], corners[3])), outline=RED, width=2
    )
