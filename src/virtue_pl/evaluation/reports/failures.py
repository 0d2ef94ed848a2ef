"""Failures of an evaluation, with their images and prompts drawn, by kind of distractor."""

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

SIDE = 240
"""Longest side of the drawn images, in pixels."""
MAX_OF_KIND, MAX_FAILURES = 6, 60
"""Number of failures that are drawn of each kind, and of all."""
RED = (230, 30, 30)


class ImageBatch(Protocol):
    """Decoded images by their content key.

    Example:
        >>> library.image(key).shape  # (3, height, width)
    """

    def image(self, key: str) -> UInt8[Tensor, "3 height width"]:
        """Return the decoded image as it was found."""
        ...


class RenderedInput(NamedTuple):
    """Input of a model, as a page shows it. image: a JPEG as a data URL, or "".

    Example:
        >>> RenderedInput("a fox", image="").text
        'a fox'
    """

    text: str
    image: str


class Failure(NamedTuple):
    """Query whose right candidate did not come first.

    kind: of the distractor that was chosen. scores: of the chosen and of the right candidate. rank: of the right one,
    from 0.

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
    """Failures of an evaluation. examples: those that are drawn. counts: (set, kind) -> how often such a distractor was
    chosen.

    Example:
        >>> Failures([], {("ADE20K", "object"): 2}).counts["ADE20K", "object"]
        2
    """

    examples: list[Failure]
    counts: dict[tuple[str, str], int]


def failures_of(lines: Iterable[Mapping[str, Any]], sets: Sequence[RankedSet], library: ImageBatch) -> Failures:
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
        chosen = next(place for place in line["ranking"] if place in row.rankings["hit@1"])
        kind = kind_of(row, chosen)
        counts[line["set"], kind] += 1
        if counts[line["set"], kind] <= MAX_OF_KIND and len(examples) < MAX_FAILURES:
            scores = score(line, chosen), score(line, 0)
            imaged = [render_candidate(row.candidates[place], library) for place in (chosen, 0)]
            examples.append(
                Failure(
                    f"{line['set']}, row {line['row']}",
                    kind,
                    render_query(row, library),
                    imaged[0],
                    imaged[1],
                    rank,
                    scores,
                )
            )
    return Failures(sorted(examples, key=lambda failure: failure.kind), dict(counts))


def score(line: Mapping[str, Any], place: int) -> float:
    """Return the score of a candidate that a line names, see `prediction_lists`."""
    if "scores" in line:
        return float(line["scores"][place])
    return float(line["ranking_scores"][line["ranking"].index(place)] if place else line["gold_score"])


def kind_of(row: EvaluationRow, chosen: int) -> str:
    """Return the name of the shortest named list that has the chosen distractor: "relation", say, of SCaR-mini; "any"
    where no kinds are named.
    """
    named = [
        (len(places), name)
        for name, places in row.rankings.items()
        if chosen in places[1:] and not name.startswith("hit@1")
    ]
    return min(named)[1] if named else "any"


def render_query(row: EvaluationRow, library: ImageBatch) -> RenderedInput:
    """Return a row's query with its region drawn."""
    return RenderedInput(row.text.strip(), render_image(row.image, row.region, library) if row.image else "")


def render_candidate(item: EmbeddingInput, library: ImageBatch) -> RenderedInput:
    """Return a candidate with its image."""
    return RenderedInput(item.text.strip(), render_image(item.image_keys[0], None, library) if item.image_keys else "")


def render_image(key: str, region: Region | None, library: ImageBatch) -> str:
    """Return the image with its region's box and mask, as a data URL; "" where its file has gone."""
    try:
        pixels = library.image(key)
    except DataError:
        return ""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((SIDE, SIDE))
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
