"""Fill a folder as people fill one with their own photographs: images, and rows in JSON Lines beside them.

Photographs are those in scikit-image's wheel; the rows, in docs/own_photos, were written by hand.

    python docs/own_photos.py --out my_photos
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import skimage.data

ROWS = Path(__file__).with_suffix("")
"""The folder with `train.jsonl` and `test.jsonl`."""
PHOTOGRAPHS = Path(skimage.data.__file__).parent


def main() -> None:
    folder = parse().out
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for rows in sorted(ROWS.glob("*.jsonl")):
        shutil.copyfile(rows, folder / rows.name)
        names = {json.loads(line)["image"] for line in rows.read_text(encoding="utf-8").splitlines()}
        for name in sorted(names):
            shutil.copyfile(PHOTOGRAPHS / name, folder / "images" / name)
        print(f"{rows.name}: {', '.join(sorted(names))}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("my_photos"), help="the folder to fill (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
