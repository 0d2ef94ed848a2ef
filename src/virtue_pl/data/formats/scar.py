"""Rows of SCaR's parquet files to rows of shards, each checked.

A DataError's words before ":" are the reason for which a row is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from virtue_pl.data.formats.candidates import check_candidates, drop_gold_repeats
from virtue_pl.preprocessing.segmentations import decode_segmentation, is_real, read_json, shorten
from virtue_pl.types import DataError

BOX_SLACK = 1.0
"""Pixels by which a box may exceed its image (annotations round); such a box is clipped."""


def pair_row(row: Mapping[str, Any], key: str, number: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return a training row, with its box as xyxy pixels and its mask as run lengths. `size` = (height, width)."""
    target = _caption(row["pos_text"], key)
    found = row.get("neg_text")
    negatives = [text for text in ([found] if isinstance(found, str) else found or []) if text]
    if target in negatives:
        raise DataError(key, f"gold repeated among negatives: {target!r}")
    return {**_region(row, row["qry"], key, number, size), "target": target, "negatives": negatives}


def ranking_row(row: Mapping[str, Any], key: str, number: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return an evaluation row, with the candidates and rankings of `ranked_captions`. `size` = (height, width)."""
    captions, rankings = ranked_captions(row, key)
    named = {name: list(indices) for name, indices in rankings.items()}
    return {**_region(row, row["qry_text"], key, number, size), "candidates": captions, "rankings": named}


def ranked_captions(row: Mapping[str, Any], key: str) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """Return the captions of a row, and the indices that each form ranks, the right one first.

    The captions of `tgt_text` come first, as they are, then those that only other forms have. `tgt_text` is ranked as
    "hit@1", `tgt_text_FORM` as "hit@1_FORM"; with `tgt_kinds_FORM`, each kind of distractor under its own name, too. A
    repeat of the right caption is in no ranking. Raises DataError for a row without captions, or with unequal forms.
    """
    captions = list(row["tgt_text"] or [])
    check_candidates([(caption, None) for caption in captions], key)
    gold, indices = captions[0], {caption: index for index, caption in reversed(list(enumerate(captions)))}
    rankings = {"hit@1": drop_gold_repeats(captions, range(len(captions)))}
    for column in form_columns(row)[1:]:
        form, found = column.removeprefix("tgt_text"), list(row[column] or [])
        check_form(found, gold, column, key)
        captions += [caption for caption in dict.fromkeys(found) if caption not in indices]
        indices |= {caption: index for index, caption in reversed(list(enumerate(captions)))}
        rankings[f"hit@1{form}"] = (0, *(indices[caption] for caption in found if caption != gold))
        kinds = row.get(f"tgt_kinds{form}") or []
        if kinds and len(kinds) != len(found):
            raise DataError(key, f"kinds do not match: {len(kinds)} kinds for {len(found)} captions of {column}")
        for kind in dict.fromkeys(kinds[1:]):
            chosen = [text for text, its_kind in zip(found, kinds, strict=True) if its_kind == kind and text != gold]
            rankings[kind] = (0, *(indices[caption] for caption in chosen))
    return captions, rankings


def form_columns(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return the columns that hold captions to rank, the main one first."""
    return sorted(name for name in names if name == "tgt_text" or name.startswith("tgt_text_"))


def check_form(captions: Sequence[str], gold: str, column: str, key: str) -> None:
    """Raise DataError for another form's captions that are missing, or have another right one."""
    if not captions or not all(captions):
        raise DataError(key, f"missing caption: {column} holds {captions!r}, expected texts")
    if captions[0] != gold:
        raise DataError(key, f"another gold caption: {column} starts with {captions[0]!r}, tgt_text with {gold!r}")


def _caption(text: str | None, key: str) -> str:
    if not text:
        raise DataError(key, "missing caption: the right one is empty")
    return text


def _region(row: Mapping[str, Any], query: str | None, key: str, number: int, size: tuple[int, int]) -> dict[str, Any]:
    if not query:
        raise DataError(key, "missing query: its text is empty")
    box, mask = xyxy(row["bbox"], key, size), run_lengths(row.get("segmentation"), key, size)
    found = {"row": number, "query": query, "box": box, "mask": mask, "category": row.get("category")}
    published = corners(row["bbox"])
    return found if published == box else {**found, "published_box": published}


def corners(box: Sequence[float]) -> list[float]:
    """Return COCO's [x, y, width, height] as [x1, y1, x2, y2], as published queries write a box in words."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


def xyxy(box: Sequence[float] | None, key: str, size: tuple[int, int]) -> list[float]:
    """Return COCO's [x, y, width, height] in pixels as [x1, y1, x2, y2], clipped to the image by at most `BOX_SLACK`.

    Raises DataError for a box outside the image of `size` = (height, width), or without area.
    """
    if not isinstance(box, Sequence) or isinstance(box, str) or len(box) != 4 or not all(map(is_real, box)):
        raise DataError(key, f"no box: found {shorten(box)}, expected [x, y, width, height] in pixels")
    given, (height, width) = corners(box), size
    clipped = [min(max(value, 0), limit) for value, limit in zip(given, (width, height, width, height), strict=True)]
    if not all(abs(value - inside) <= BOX_SLACK for value, inside in zip(given, clipped, strict=True)):
        raise DataError(key, f"box outside the image: {list(box)} in {width}x{height} pixels")
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        raise DataError(key, f"box without area: {list(box)}")
    return clipped


def run_lengths(segmentation: Any, key: str, size: tuple[int, int]) -> dict[str, Any] | None:
    """Return a segmentation as uncompressed run lengths, which need no library to read; None where there is none.

    A segmentation is COCO's RLE (compressed or not), polygons, or a mask of 0 and 1; any of them may be written as
    JSON. Raises DataError for a damaged or empty one, or one of another size than `size` = (height, width).
    """
    if segmentation is None or (isinstance(segmentation, str) and not segmentation):
        return None
    mask = decode_segmentation(read_json(segmentation, key), key, size)
    if not mask.any():
        raise DataError(key, "empty mask: no pixel is inside")
    pixels = mask.T.reshape(-1)
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    bounds = [0, 0] if pixels[0] else [0]
    return {"size": list(size), "counts": np.diff(np.concatenate([bounds, changes, [len(pixels)]])).tolist()}
