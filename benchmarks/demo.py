"""The page in a real browser: is what is clicked what is ranked first, how soon, and does it ask any other host?

After the quickstart, in its folder: `virtue-pl demo` is started as its users start it, Debian's Chromium opens the
page, and in scenes drawn by a seed two objects each are clicked, at a point inside of each one's mask. Prints JSON.

    python benchmarks/demo.py --shots runs/shots
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from virtue_pl.apps.demo.images import ImageShelf
from virtue_pl.apps.demo.quickstart import IMAGES, QuickstartFiles, captions_of_scenes, read_scenes
from virtue_pl.preprocessing.prompts import erode
from virtue_pl.preprocessing.segmentations import decode_segmentation

CHROMIUM = "/usr/bin/chromium"
ROWS, ACTION_MS = 700, 60_000
BARS = {"named": 0.85, "first_seconds": 2.0, "next_seconds": 0.5}
"""Share of clicks whose object the first caption names; seconds of an image's first click and of the next ones."""
CONSOLE = Console(stderr=True)


def main() -> int:
    """Print the JSON; returns 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--data", type=Path, default=Path("data/scar_mini_stamps"))
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shots", type=Path, help="folder for pictures of the page")
    arguments = parser.parse_args()
    files = QuickstartFiles(arguments.runs, arguments.data)
    rows = list(read_scenes(files.rows, ROWS))
    names = ImageShelf(files.data, captions_of_scenes(rows)).names
    scenes = draw_scenes(rows, names, arguments.scenes, arguments.seed)
    with served(arguments.runs, arguments.data) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("[data-part=image]")
        wait_until_done(page)
        clicks = [click for name, rows in scenes for click in ask_scene(page, name, rows, requests)]
        if arguments.shots is not None:
            arguments.shots.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(arguments.shots / "rank.png"))
        browser.close()
    result = summarise(clicks, requests) | {"scenes": len(scenes), "seed": arguments.seed}
    print(json.dumps(result, indent=1))
    return int(not result["holds"])


def draw_scenes(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], count: int, seed: int
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return scenes of which two objects are asked, drawn by a seed from those that the page has, with their rows."""
    by_image: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if f"{IMAGES}/{row['qry_image_path']}" in names:
            by_image.setdefault(f"{IMAGES}/{row['qry_image_path']}", []).append(row)
    pairs = [(name, found[:2]) for name, found in sorted(by_image.items()) if len(found) >= 2]
    return random.Random(seed).sample(pairs, min(count, len(pairs)))


@contextmanager
def served(runs: Path, data: Path) -> Iterator[str]:
    """Run `virtue-pl demo`, and give its address once it answers."""
    command = [sys.executable, "-m", "virtue_pl", "demo", "--port", "0", "--runs", str(runs), "--data", str(data)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                CONSOLE.print(line.rstrip(), markup=False)
                if found := re.search(r"http://\S+", line):
                    yield found.group().rstrip(")")
                    break
        finally:
            process.terminate()


def ask_scene(
    page: Page, name: str, rows: Sequence[Mapping[str, Any]], requests: list[str]
) -> Iterator[dict[str, Any]]:
    """Open a scene, click each object, and yield what came of it."""
    page.click(f"[data-image='{name}']")
    page.wait_for_function(
        "(name) => document.querySelector('[data-image][aria-current=true]').dataset.image === name", arg=name
    )
    wait_until_done(page)
    for number, row in enumerate(rows):
        x, y, height, width = point_inside(row)
        box = page.locator("[data-part=image]").bounding_box()
        assert box is not None
        before, start = len(requests), time.perf_counter()
        page.mouse.click(box["x"] + x / width * box["width"], box["y"] + y / height * box["height"])
        wait_until_done(page)
        seconds = time.perf_counter() - start
        caption = page.inner_text("[data-part=ranking] tr.first .caption")
        calls = sum("/queue/join" in url for url in requests[before:])
        yield {
            "scene": name,
            "clicked": row["category"],
            "first": caption,
            "named": names_object(caption, row["category"]),
            "seconds": seconds,
            "first_of_image": number == 0,
            "calls": calls,
        }


def wait_until_done(page: Page) -> None:
    """Wait until the canvas no longer says that it waits."""
    page.wait_for_selector("[data-part=busy]", state="hidden", timeout=ACTION_MS)


def point_inside(row: Mapping[str, Any]) -> tuple[float, float, int, int]:
    """Return a pixel deep inside of a row's mask as x, y, and the image's height and width."""
    import torch

    segmentation = row["segmentation"]
    height, width = segmentation["size"]
    mask = torch.from_numpy(decode_segmentation(segmentation, "segmentation", (height, width)).copy()).bool()
    while (smaller := erode(mask, 1)).any():
        mask = smaller
    y, x = np.argwhere(mask.numpy())[0]
    return float(x) + 0.5, float(y) + 0.5, height, width


def names_object(caption: str, category: str) -> bool:
    """Return whether a caption is of an object: it begins with its name, behind an article, and maybe behind the scene.

    Example:
        >>> names_object("on moss, a red car to the left of a cat", "red car"), names_object("a cat below a car", "car")
        (True, False)
    """
    subject = re.sub(r"^(?!an? |some |the )[^,]*, ", "", caption)
    return re.match(rf"((a|an|a pair of|some|the)\s)?{re.escape(category)}\b", subject) is not None


def summarise(clicks: Sequence[Mapping[str, Any]], requests: Sequence[str]) -> dict[str, Any]:
    """Return the figures, and whether every bar holds."""
    first = [click["seconds"] for click in clicks if click["first_of_image"]]
    following = [click["seconds"] for click in clicks if not click["first_of_image"]]
    elsewhere = sorted({url for url in requests if not url.startswith(("http://127.0.0.1", "data:", "blob:"))})
    figures = {
        "named": sum(click["named"] for click in clicks) / len(clicks),
        "first_seconds": statistics.median(first),
        "next_seconds": statistics.median(following),
    }
    holds = figures["named"] >= BARS["named"] and not elsewhere and {click["calls"] for click in clicks} == {1}
    holds = holds and all(figures[name] <= BARS[name] for name in ("first_seconds", "next_seconds"))
    return {
        **figures,
        "bars": BARS,
        "calls_of_an_action": sorted({click["calls"] for click in clicks}),
        "other_hosts": elsewhere,
        "clicks": list(clicks),
        "holds": holds,
    }


if __name__ == "__main__":
    sys.exit(main())
