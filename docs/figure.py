"""A figure for README.md: boxes on a photograph, and the captions that a model ranks for each of them.

Photographs are those in scikit-image's wheel, and in the public domain. The figure shows what the model says, right or
wrong; equal models give equal files. `--rank` prints what it says of every scene, to choose one.

    python docs/figure.py --model runs/quickstart/virtue/checkpoints/last.ckpt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage import data

from virtue_pl.embedder import Embedder
from virtue_pl.types import VisualPrompt

QUERY = (
    "Find the caption that best describes the segmented object, "
    "considering both local details and global context in the given image."
)
"""Text of the quickstart's queries."""
DPI, WIDTH = 200, 8.0
"""1600 pixels from side to side; `WIDTH` is in inches, as all sizes here are."""
PHOTOGRAPH = 3.6
"""The photograph's width at most."""
MARGIN, GAP, LINE, HEADING, PADDING = 0.1, 0.25, 0.3, 0.38, 0.08
LONG = 30
"""Characters beyond which captions are set smaller."""
SQUARE, EDGE = 0.22, 0.02
"""Sides of a number's square, and how far a box stays from the photograph's edge."""
INK, PALE = "#222222", "#9A9A9A"
COLOURS = ("#0072B2", "#D55E00", "#009E73")
"""Okabe and Ito's, which the colour-blind tell apart."""


class Scene(NamedTuple):
    """`image` is a function of `skimage.data`; boxes are xyxy in its pixels, each with its right caption."""

    image: str
    boxes: Sequence[tuple[int, int, int, int]]
    right: Sequence[str]
    wrong: Sequence[str]

    @property
    def captions(self) -> list[str]:
        """All captions, which every box is to rank."""
        return [*self.right, *self.wrong]


SCENES = {
    "astronaut": Scene(
        "astronaut",
        [(12, 12, 352, 505), (362, 6, 458, 288)],
        ["an astronaut", "a space shuttle"],
        ["a firefighter", "a teddy bear", "a light bulb"],
    ),
    "astronaut_relations": Scene(
        "astronaut",
        [(12, 12, 352, 505), (362, 6, 458, 288)],
        ["an astronaut to the left of a space shuttle", "a space shuttle to the right of an astronaut"],
        [
            "an astronaut to the right of a space shuttle",
            "a space shuttle to the left of an astronaut",
            "a firefighter to the left of a space shuttle",
        ],
    ),
    "astronaut_helmet": Scene(
        "astronaut",
        [(285, 345, 505, 512), (362, 6, 458, 288)],
        ["a helmet", "a space shuttle"],
        ["a firefighter", "a cymbal", "a light bulb"],
    ),
    "mug": Scene(
        "coffee", [(175, 15, 420, 310)], ["a mug of coffee"], ["a trophy cup", "a key", "a pitcher", "a spoon"]
    ),
    "coffee": Scene(
        "coffee",
        [(175, 15, 420, 310), (322, 65, 436, 332)],
        ["a mug of coffee", "a spoon"],
        ["a trophy cup", "a key", "a pitcher"],
    ),
    "rocket": Scene(
        "rocket",
        [(300, 120, 345, 425), (548, 0, 640, 427)],
        ["a rocket", "a steel tower"],
        ["a hot air balloon", "an airplane", "a palm tree"],
    ),
    "cat": Scene("chelsea", [(0, 0, 420, 300)], ["a cat"], ["a lion", "a red fox", "a rabbit", "a snowy owl"]),
}


def main() -> None:
    options = parse()
    embedder = Embedder.from_pretrained(options.model, device="cpu")
    if options.rank:
        print("\n\n".join(as_text(name, scene, rank(embedder, scene)) for name, scene in SCENES.items()))
        return
    scene = SCENES[options.scene]
    scores = rank(embedder, scene)
    print(as_text(options.scene, scene, scores))
    draw(scene, scores, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run's checkpoint, or an exported or published folder")
    parser.add_argument(
        "--scene",
        choices=SCENES,
        default="mug",
        help="which photograph, boxes and captions (default %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/images/figure.png"), help="the file to write (default %(default)s)"
    )
    parser.add_argument(
        "--rank", action="store_true", help="print what the model says of every scene, and draw nothing"
    )
    return parser.parse_args()


def photograph(scene: Scene) -> np.ndarray:
    """Return the scene's photograph, uint8 [height, width, 3]."""
    return np.asarray(getattr(data, scene.image)())


def rank(embedder: Embedder, scene: Scene) -> np.ndarray:
    """Return the cosine of each box to each caption, [boxes, captions]."""
    image = photograph(scene)
    prompts = [VisualPrompt.from_pixels(boxes=[box], size=image.shape[:2]) for box in scene.boxes]
    return np.asarray(embedder.encode(QUERY, image, prompts) @ embedder.encode(scene.captions).T)


def nearest_first(row: np.ndarray) -> np.ndarray:
    """Return the numbers of one box's captions, the nearest first."""
    return np.argsort(-row, kind="stable")


def as_text(name: str, scene: Scene, scores: np.ndarray) -> str:
    """Return the rankings as lines; a star is before the caption that is right."""
    lines = [name]
    for number, row in enumerate(scores):
        lines.append(f"  box {number + 1}")
        for index in nearest_first(row):
            caption = scene.captions[index]
            lines.append(f"  {'*' if caption == scene.right[number] else ' '} {row[index]:.2f}  {caption}")
    return "\n".join(lines)


def draw(scene: Scene, scores: np.ndarray, path: Path) -> None:
    """Write the PNG: the photograph with its boxes on the left, a ranking for each box on the right."""
    image = photograph(scene)
    aspect = image.shape[1] / image.shape[0]
    listed = len(scores) * (HEADING + LINE * scores.shape[1]) + GAP * (len(scores) - 1)
    width = min(listed * aspect, PHOTOGRAPH)
    height = max(listed, width / aspect)
    figure = Figure(figsize=(WIDTH, height + 2 * MARGIN), dpi=DPI, facecolor="white")
    draw_photograph(add_axes(figure, MARGIN, (height - width / aspect) / 2, width, width / aspect), image, scene)
    left = width + 2 * MARGIN + GAP
    draw_rankings(add_axes(figure, left, (height - listed) / 2, WIDTH - left - MARGIN, listed), scene, scores)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Return axes without a frame, in inches from their upper left corner; `bottom` is above the margin."""
    whole = figure.get_size_inches()
    axes = figure.add_axes((left / whole[0], (bottom + MARGIN) / whole[1], width / whole[0], height / whole[1]))
    axes.axis("off")
    axes.set(xlim=(0, width), ylim=(height, 0))
    return axes


def draw_photograph(axes: Axes, image: np.ndarray, scene: Scene) -> None:
    """Draw the photograph over the whole axes, and its boxes, each with its number."""
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    axes.imshow(image, interpolation="lanczos", extent=(0, width, height, 0), aspect="auto")
    for number, box in enumerate(scene.boxes):
        corners = np.array(box).reshape(2, 2) / (image.shape[1], image.shape[0]) * (width, height)
        (x1, y1), (x2, y2) = np.clip(corners, EDGE, np.array([width, height]) - EDGE)
        for colour, line in (("white", 4.0), (COLOURS[number], 2.5)):
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=line))
        draw_number(axes, number, x1, y1)


def draw_number(axes: Axes, number: int, left: float, top: float) -> None:
    """Draw a box's number on a square of its colour."""
    axes.add_patch(Rectangle((left, top), SQUARE, SQUARE, facecolor=COLOURS[number], linewidth=0))
    middle = {"ha": "center", "va": "center"}
    axes.text(left + SQUARE / 2, top + SQUARE / 2, str(number + 1), color="white", size=10, weight="bold", **middle)


def draw_rankings(axes: Axes, scene: Scene, scores: np.ndarray) -> None:
    """Draw a list for each box: captions, the nearest first, on bars as long as their cosines."""
    top = 0.0
    size = 9.5 if max(map(len, scene.captions)) <= LONG else 8.0
    for number, row in enumerate(scores):
        draw_number(axes, number, 0, top + 0.05)
        axes.text(
            SQUARE + 0.1, top + 0.05 + SQUARE / 2, "captions, the nearest first", color=PALE, size=8.5, va="center"
        )
        top += HEADING
        for index in nearest_first(row):
            best = index == nearest_first(row)[0]
            share = max(float(row[index] / scores.max()), 0)
            draw_caption(axes, scene.captions[index], float(row[index]), share, top, COLOURS[number], size, best)
            top += LINE
        top += GAP


def draw_caption(
    axes: Axes, caption: str, score: float, share: float, top: float, colour: str, size: float, best: bool
) -> None:
    """Draw one line of a ranking, its bar over `share` of the axes' width."""
    width, middle = axes.get_xlim()[1], top + LINE / 2
    bar = Rectangle(
        (0, top + 0.03), width * share, LINE - 0.06, facecolor=colour, alpha=0.3 if best else 0.1, linewidth=0
    )
    axes.add_patch(bar)
    style = {"color": INK, "size": size, "weight": "bold" if best else "normal", "va": "center"}
    axes.text(PADDING, middle, caption, **style)
    axes.text(width - PADDING, middle, f"{score:.2f}", ha="right", **style)


if __name__ == "__main__":
    main()
