"""The figure of README.md: boxes on a photograph, and the captions that a model ranks for each of them.

Photographs are those in scikit-image's wheel, and in the public domain. The figure shows what the model says, right or wrong, and equal models
give equal files.

    python docs/figure.py --model runs/quickstart/virtue/checkpoints/last.ckpt
    python docs/figure.py --model runs/quickstart/virtue/checkpoints/last.ckpt --rank    # every scene as text, to choose one
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from virtue_pl.embedder import Embedder

QUERY = "Find the caption that best describes the segmented object, considering both local details and global context in the given image."
"""What the quickstart's queries say."""
DPI, WIDTH = 200, 8.0
"""1600 pixels from side to side; `WIDTH` is in inches, as all sizes here are."""
PHOTOGRAPH = 3.6
"""The photograph's width at most."""
MARGIN, GAP, LINE, HEADING, PADDING = 0.1, 0.25, 0.3, 0.38, 0.08
LONG = 30
"""Characters beyond which captions are set smaller."""
INK, PALE = "#222222", "#9A9A9A"
COLOURS = ("#0072B2", "#D55E00", "#009E73")
"""Okabe and Ito's, which the colour-blind tell apart."""


class Scene(NamedTuple):
    """`image` is a function of `skimage.data`; boxes are xyxy in its pixels, each with the caption that is right for it."""

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
    from virtue_pl.embedder import Embedder

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
        default="astronaut",
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
    """The scene's photograph, uint8 [height, width, 3]."""
    from skimage import data

    return np.asarray(getattr(data, scene.image)())


def rank(embedder: Embedder, scene: Scene) -> np.ndarray:
    """Cosines of each box to each caption, [boxes, captions]."""
    from virtue_pl.types import VisualPrompt

    image = photograph(scene)
    prompts = [VisualPrompt.from_pixels(boxes=[box], size=image.shape[:2]) for box in scene.boxes]
    return np.asarray(embedder.encode(QUERY, image, prompts) @ embedder.encode(scene.captions).T)


def as_text(name: str, scene: Scene, scores: np.ndarray) -> str:
    """The rankings as lines; a star is before the caption that is right."""
    lines = [name]
    for number, row in enumerate(scores):
        lines.append(f"  box {number + 1}")
        for place in np.argsort(-row, kind="stable"):
            lines.append(
                f"  {'*' if scene.captions[place] == scene.right[number] else ' '} {row[place]:.2f}  {scene.captions[place]}"
            )
    return "\n".join(lines)


def draw(scene: Scene, scores: np.ndarray, path: Path) -> None:
    """Writes the PNG: the photograph with its boxes on the left, a ranking for each box on the right."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    image = photograph(scene)
    listed = len(scores) * (HEADING + LINE * scores.shape[1]) + GAP * (len(scores) - 1)
    width = min(listed * image.shape[1] / image.shape[0], PHOTOGRAPH)
    high = width * image.shape[0] / image.shape[1]
    height = max(listed, high)
    figure = plt.figure(figsize=(WIDTH, height + 2 * MARGIN), dpi=DPI, facecolor="white")
    draw_photograph(figure, image, scene, (MARGIN, MARGIN + (height - high) / 2, width, high))
    left = width + 2 * MARGIN + GAP
    draw_rankings(figure, scene, scores, (left, MARGIN + (height - listed) / 2, WIDTH - left - MARGIN, listed))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def place_axes(figure: Figure, area: tuple[float, float, float, float]) -> Axes:
    """Axes without frame and ticks at (left, bottom, width, height) in inches."""
    width, height = figure.get_size_inches()
    left, bottom, wide, high = area
    axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
    axes.axis("off")
    return axes


def draw_photograph(figure: Figure, image: np.ndarray, scene: Scene, area: tuple[float, float, float, float]) -> None:
    """The photograph with its boxes, each with its number in the corner."""
    from matplotlib.patches import Rectangle

    axes = place_axes(figure, area)
    axes.imshow(image, interpolation="lanczos")
    pixel = image.shape[1] / area[2] / 72
    for number, (x1, y1, x2, y2) in enumerate(scene.boxes):
        edge = 1.5 * pixel
        x1, y1, x2, y2 = max(x1, edge), max(y1, edge), min(x2, image.shape[1] - edge), min(y2, image.shape[0] - edge)
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=4))
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=COLOURS[number], linewidth=2.5))
        axes.add_patch(Rectangle((x1, y1), 16 * pixel, 16 * pixel, facecolor=COLOURS[number]))
        axes.text(
            x1 + 8 * pixel,
            y1 + 8.4 * pixel,
            str(number + 1),
            color="white",
            fontsize=10,
            fontweight="bold",
            ha="center",
            va="center",
        )


def draw_rankings(figure: Figure, scene: Scene, scores: np.ndarray, area: tuple[float, float, float, float]) -> None:
    """A list for each box: captions from best to worst, a bar as long as the cosine, and the cosine."""
    from matplotlib.patches import Rectangle

    axes = place_axes(figure, area)
    axes.set(xlim=(0, area[2]), ylim=(area[3], 0))
    longest, top = max(float(scores.max()), 1e-6), 0.0
    size = 9.5 if max(map(len, scene.captions)) <= LONG else 8.0
    for number, row in enumerate(scores):
        axes.add_patch(Rectangle((0, top + 0.06), 0.22, 0.22, facecolor=COLOURS[number]))
        axes.text(
            0.11, top + 0.175, str(number + 1), color="white", fontsize=10, fontweight="bold", ha="center", va="center"
        )
        axes.text(0.32, top + 0.175, "captions, the nearest first", color=PALE, fontsize=8.5, va="center")
        top += HEADING
        for order, place in enumerate(np.argsort(-row, kind="stable")):
            best = order == 0
            share = max(float(row[place]), 0) / longest
            axes.add_patch(
                Rectangle(
                    (0, top + 0.03),
                    area[2] * share,
                    LINE - 0.06,
                    facecolor=COLOURS[number],
                    alpha=0.30 if best else 0.10,
                    linewidth=0,
                )
            )
            weight = "bold" if best else "normal"
            middle = top + LINE / 2 + 0.005
            axes.text(PADDING, middle, scene.captions[place], color=INK, fontsize=size, fontweight=weight, va="center")
            axes.text(
                area[2] - PADDING,
                middle,
                f"{row[place]:.2f}",
                color=INK,
                fontsize=size,
                fontweight=weight,
                ha="right",
                va="center",
            )
            top += LINE
        top += GAP


if __name__ == "__main__":
    main()
