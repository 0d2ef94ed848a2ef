"""Measure peak memory of embedding photographs of 12 megapixels, after the first and after all, however they are given.

    python benchmarks/memory.py --photographs data/photographs --count 1000 > memory.json

Eight photographs are drawn by a seed, noise in several sizes, and written as JPEGs; the others are these with another
comment in the file, which makes each an image of its own to the embedder. A second call reads them. Each way of giving
them has a process of its own, since a peak never falls. The model is a tiny random one: what is measured is the images,
not the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (4032, 3024)
"""Width and height, as phones have."""
QUALITY = 85
DRAWN = 8
"""Number of photographs that are drawn."""
MIB = 1024
"""Kibibytes, the unit of ru_maxrss, in a mebibyte."""


def list_of_paths(paths: list[Path]) -> Any:
    """Give a list of paths."""
    return paths


def generator_of_paths(paths: list[Path]) -> Iterator[Path]:
    """Give the paths one after the other."""
    yield from paths


def generator_of_images(paths: list[Path]) -> Iterator[Image.Image]:
    """Give decoded images of Pillow one after the other, each in memory when it comes."""
    for path in paths:
        image = Image.open(path)
        image.load()
        yield image


SOURCES: dict[str, Callable[[list[Path]], Iterable[Any]]] = {
    way.__name__: way for way in (list_of_paths, generator_of_paths, generator_of_images)
}


def main() -> int:
    """Write the photographs that are not there, measure every way, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder to write them to, and to read them from again")
    parser.add_argument("--count", type=int, default=1000, help="photographs (default 1000)")
    parser.add_argument("--first", type=int, default=100, help="the peak is also taken after so many (default 100)")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("WIDTH", "HEIGHT"), help="in pixels")
    parser.add_argument("--batch-size", type=int, default=16, help="of the embedder (default 16)")
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=SOURCES, help="how they are given")
    parser.add_argument("--inside", metavar="WAY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(measure(arguments)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.photographs or Path(temporary)
        paths = write_photographs(folder, arguments.count, tuple(arguments.size))
        result = {
            "photographs": len(paths),
            "size": list(arguments.size),
            "bytes": sum(path.stat().st_size for path in paths),
            "decoded_mib_of_one": round(arguments.size[0] * arguments.size[1] * 3 / 2**20, 1),
            "batch_size": arguments.batch_size,
            "sources": {way: run_inside(way, folder, arguments) for way in arguments.sources},
        }
    print(json.dumps(result, indent=2))
    return 0


def run_inside(way: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a process of its own measures of one way."""
    options = [f"--count={arguments.count}", f"--first={arguments.first}", f"--batch-size={arguments.batch_size}"]
    command = [sys.executable, __file__, f"--photographs={folder}", "--inside", way, *options]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return peaks of this process: before anything is embedded, after the first photographs, and after all."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tiny model is the tests'
    from fixtures.tiny_virtue import tiny_virtue
    from virtue_pl import Embedder

    embedder = Embedder(tiny_virtue(), "cpu", batch_size=arguments.batch_size)
    paths = sorted(arguments.photographs.glob("*.jpg"))[: arguments.count]
    give, found = SOURCES[arguments.inside], {"before_mib": peak()}
    embedder.encode("what is it", give(paths[: arguments.first]))
    found["first_mib"], started = peak(), time.perf_counter()
    rows = len(embedder.encode("what is it", give(paths)))
    found |= {"all_mib": peak(), "grown_mib": round(peak() - found["first_mib"], 1)}
    return found | {"rows": rows, "images_per_second": round(rows / (time.perf_counter() - started), 2)}


def peak() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB, 1)


def write_photographs(folder: Path, count: int, size: tuple[int, ...]) -> list[Path]:
    """Return the photographs of a folder; those that are missing are written, the first by drawing them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            temporary = path.with_suffix(".part")
            if number < DRAWN:
                draw(number, size).save(temporary, "JPEG", quality=QUALITY)
            else:
                temporary.write_bytes(with_comment(paths[number % DRAWN].read_bytes(), f"photograph {number}"))
            temporary.replace(path)
    return paths


def with_comment(jpeg: bytes, text: str) -> bytes:
    """Return a JPEG with a comment in front of its other segments."""
    comment = text.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def draw(number: int, size: tuple[int, ...]) -> Image.Image:
    """Return noise in two sizes, smooth as a photograph mostly is."""
    generator = np.random.default_rng(number)
    layers = [
        Image.fromarray(generator.integers(0, 256, (cells * 3, cells * 4, 3), dtype=np.uint8)).resize(
            (size[0], size[1]), Image.Resampling.BILINEAR
        )
        for cells in (2, 60)
    ]
    return Image.blend(*layers, 0.3)


if __name__ == "__main__":
    sys.exit(main())
