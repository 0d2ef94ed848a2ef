"""Queries that an evaluation got wrong, with their pictures and prompts drawn, by kind of distractor."""

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
"""Of the drawn pictures, in pixels."""
A_KIND, IN_ALL = 6, 60
"""How many failures are shown of each kind, and of all."""
RED = (230, 30, 30)


class Pictures(Protocol):
    def picture(self, key: str) -> UInt8[Tensor, "3 height width"]: ...


class Shown(NamedTuple):
    """An input for a page. picture: a JPEG as a data URL, or ""."""

    text: str
    picture: str


class Failure(NamedTuple):
    """kind: of the distractor that was chosen; scores: of the chosen and of the right candidate."""

    name: str
    kind: str
    query: Shown
    chosen: Shown
    right: Shown
    rank: int
    scores: tuple[float, float]


class Failures(NamedTuple):
    """counts: (set, kind) -> how often such a distractor was chosen."""

    shown: list[Failure]
    counts: dict[tuple[str, str], int]


def failures_of(lines: Iterable[Mapping[str, Any]], sets: Sequence[RankedSet], library: Pictures) -> Failures:
    """All counted, the first of each kind drawn. A right candidate that ties with the chosen one counts as wrong."""
    rows = {(ranked.about.name, row.row): row for ranked in sets for row in ranked.rows}
    counts: Counter[tuple[str, str]] = Counter()
    shown: list[Failure] = []
    for line in lines:
        rank = line["ranks"]["hit@1"][0]
        if not rank:
            continue
        row = rows[line["set"], line["row"]]
        chosen = next(place for place in line["ranking"] if place in row.rankings["hit@1"])
        kind = kind_of(row, chosen)
        counts[line["set"], kind] += 1
        if counts[line["set"], kind] <= A_KIND and len(shown) < IN_ALL:
            scores = score(line, chosen), score(line, 0)
            pictured = [show(row.candidates[place], library) for place in (chosen, 0)]
            shown.append(Failure(f"{line['set']}, row {line['row']}", kind, query(row, library), pictured[0], pictured[1], rank, scores))
    return Failures(sorted(shown, key=lambda failure: failure.kind), dict(counts))


def score(line: Mapping[str, Any], place: int) -> float:
    """Of a candidate that a line names, see `listings`."""
    if "scores" in line:
        return float(line["scores"][place])
    return float(line["ranking_scores"][line["ranking"].index(place)] if place else line["gold_score"])


def kind_of(row: EvaluationRow, chosen: int) -> str:
    """The shortest named list that has the chosen distractor: "relation", say, of SCaR-mini; "any" where no kinds are named."""
    named = [(len(places), name) for name, places in row.rankings.items() if chosen in places[1:] and not name.startswith("hit@1")]
    return min(named)[1] if named else "any"


def query(row: EvaluationRow, library: Pictures) -> Shown:
    return Shown(row.text.strip(), drawn(row.picture, row.region, library) if row.picture else "")


def show(item: EmbeddingInput, library: Pictures) -> Shown:
    return Shown(item.text.strip(), drawn(item.image_keys[0], None, library) if item.image_keys else "")


def drawn(key: str, region: Region | None, library: Pictures) -> str:
    """The picture with its region's box and mask, as a data URL; "" where its file has gone."""
    try:
        pixels = library.picture(key)
    except DataError:
        return ""
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((SIDE, SIDE))
    if region is not None:
        mark(picture, region)
    content = io.BytesIO()
    picture.save(content, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def mark(picture: Image.Image, region: Region) -> None:
    """Draws the region: its mask as a tint, its box as a line."""
    if region.mask is not None:
        mask = Image.fromarray(region.mask.numpy().astype("uint8") * 90).resize(picture.size)
        picture.paste(RED, (0, 0), mask)
    x1, y1, x2, y2 = region.box.tolist()
    corners = [round(x1 * picture.width), round(y1 * picture.height), round(x2 * picture.width) - 1, round(y2 * picture.height) - 1]
    ImageDraw.Draw(picture).rectangle((corners[0], corners[1], max(corners[0], corners[2]), max(corners[1], corners[3])), outline=RED, width=2)
