"""Cost of going on within an epoch: CPU seconds to the first batch, at its start and at 90 % of it.

Pairs are written into shards in a temporary folder, each a small image with a caption of its own. Every measurement is
a process of its own, which opens the shards, takes up the place, and reads one batch; the imports are not counted. They
take turns, and each figure is the median of rounds. `reads` is the number of records that were read for it.

    python benchmarks/resume.py --rows 100000 --rounds 3
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from virtue_pl.data.datamodules.pairs import PairDataModule
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.writer import ShardWriter
from virtue_pl.data.streaming.options import SamplingOptions
from virtue_pl.data.streaming.pipeline import ReaderInfo, TrainingSource
from virtue_pl.data.streaming.record_reader import RecordReader
from virtue_pl.data.streaming.training_loader import TrainingLoader
from virtue_pl.data.streaming.training_stream import TrainingStream

SHARES = {"start": 0.0, "at 90 %": 0.9}


def main() -> None:
    options = parse()
    if options.child:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = str(write_shards(Path(temporary) / "pairs", options.rows))
        states = {name: state_at(options, share) for name, share in SHARES.items()}
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in SHARES}
        for _ in range(options.rounds):
            for name in SHARES:
                rounds[name].append(run_child(options, states[name]))
    seconds = {name: statistics.median(one["cpu_seconds"] for one in found) for name, found in rounds.items()}
    print(
        json.dumps(
            {
                "rows": options.rows,
                "batch_size": options.batch_size,
                "cpu_seconds": seconds,
                "ratio": round(seconds["at 90 %"] / seconds["start"], 3),
                "reads": {name: found[0]["reads"] for name, found in rounds.items()},
            },
            indent=1,
        )
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes")
    for hidden in ("--folder", "--state", "--child"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_shards(folder: Path, rows: int) -> Path:
    """Write shards of 1,000 images, with one row each."""
    images = []
    for number in range(16):
        stream = io.BytesIO()
        noise = np.random.default_rng(number).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(noise).save(stream, "JPEG", quality=80)
        images.append(stream.getvalue())
    with ShardWriter(folder, images_per_shard=1000) as writer:
        for row in range(rows):
            fields = {"row": row, "query": ["Find it.", 0], "target": [f"caption {row}", None], "negatives": []}
            writer.add([(images[row % 16], "jpg")], f"{row}.jpg", [fields])
            writer.finish_group()
        writer.write_manifest(name="pairs", kind="pairs", task="pairs", meta_task="pairs", licence="none")
    return folder


def open_loader(options: argparse.Namespace) -> TrainingLoader:
    """Return the loader of one epoch over all rows."""
    folder = ShardFolder.open(options.folder, "train")
    source = TrainingSource(folder, PairDataModule.to_sample, SamplingOptions(), seed=0, max_pixels=10**6)
    steps = options.rows // options.batch_size
    stream = TrainingStream(source, list, batch_size=options.batch_size, steps=steps, reader=ReaderInfo())
    return TrainingLoader(stream, 0, lambda: 0, {})


def state_at(options: argparse.Namespace, share: float) -> str:
    """Return the state of a loader that has read a share of its epoch, as a checkpoint holds it."""
    loader = open_loader(options)
    steps = int(share * len(loader))
    cursor = loader.stream.advance(loader.stream.cursor, steps)
    return json.dumps({"taken": steps, "cursor": cursor.to_json()})


def run_child(options: argparse.Namespace, state: str) -> dict[str, Any]:
    arguments = ["--child", "1", "--folder", options.folder, "--state", state]
    sizes = ["--rows", str(options.rows), "--batch-size", str(options.batch_size)]
    found = subprocess.run([sys.executable, __file__, *arguments, *sizes], capture_output=True, text=True, check=True)
    return dict(json.loads(found.stdout))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the CPU seconds from opening the shards to the first batch, and the records that were read."""
    reads, read = [0], RecordReader.read

    def count_read(reader: RecordReader, shard: int, number: int) -> Any:
        reads[0] += 1
        return read(reader, shard, number)

    RecordReader.read = count_read  # type: ignore[method-assign]
    started = time.process_time()
    loader = open_loader(options)
    loader.load_state_dict(json.loads(options.state))
    assert len(next(iter(loader))) == options.batch_size
    return {"cpu_seconds": round(time.process_time() - started, 3), "reads": reads[0]}


if __name__ == "__main__":
    main()
