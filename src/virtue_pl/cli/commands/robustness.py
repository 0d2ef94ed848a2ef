"""`virtue-pl robustness`: measure what imprecise boxes, clicks and masks cost a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtue_pl.cli.arguments import MAX_PIXELS, add_max_pixels
from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.dataclass_options import add_options, read_options
from virtue_pl.cli.progress import LoadingLine
from virtue_pl.evaluation.settings import LoadingOptions, QueryFormat, RobustnessOptions
from virtue_pl.types import VirtueError

if TYPE_CHECKING:
    from virtue_pl.data.shards.records import RecordImage, Row
    from virtue_pl.data.streaming.loader import RankingStream
    from virtue_pl.evaluation.probes.robustness import WithPrompt
    from virtue_pl.types import RankingSample

GROUP = "results"

PROMPT_CONSISTENCY = "prompt_consistency"
"""Kind of the probe that measures whether a region's embeddings agree whatever prompt points at it."""
SHARDS = "shards"
"""Folder, in that of the numbers, of the shards that one's own rows become."""
BATCH_SIZE = 8
"""Number of samples that are embedded together, with all their prompts."""


def main(argv: list[str]) -> int:
    """Print the tables; write robustness.json and a curve for each kind. Returns the exit code."""
    arguments = _parser().parse_args(argv)

    progress = LoadingLine("libraries and the model").start()
    from rich.console import Console
    from rich.progress import track

    from virtue_pl.embedder import Embedder
    from virtue_pl.evaluation.probes.perturbations import PERTURBATIONS
    from virtue_pl.evaluation.probes.prompt_consistency import (
        PromptConsistency,
        prompt_consistency,
    )
    from virtue_pl.evaluation.probes.robustness import Robustness, robustness
    from virtue_pl.evaluation.reports.probe_tables import prompt_consistency_tables, robustness_tables
    from virtue_pl.evaluation.reports.report_files import write_json
    from virtue_pl.evaluation.reports.robustness_plots import plot_robustness
    from virtue_pl.evaluation.reports.tables import TerminalTable
    from virtue_pl.evaluation.statistics.summary import context

    options, loading = read_options(RobustnessOptions, arguments), read_options(LoadingOptions, arguments)
    sets = folders(arguments.shards, arguments.out / SHARDS, arguments.max_pixels)
    passes = [
        track(ranking_samples(sets, options.limit, arguments.max_pixels), title, console=Console(stderr=True))
        for title in ("imprecise prompts", "other prompts")
    ]
    embedder = Embedder.from_pretrained(
        arguments.model,
        device=options.device,
        batch_size=options.batch_size,
        cached_images=2 * BATCH_SIZE,
        **vars(loading),
    )
    progress.stop()
    kinds: tuple[str, ...] = options.kinds or (*PERTURBATIONS, PROMPT_CONSISTENCY)
    found, consistency = Robustness(), PromptConsistency()
    with_prompt = evaluation_queries(embedder)
    if perturbations := [kind for kind in kinds if kind != PROMPT_CONSISTENCY]:
        found = robustness(
            embedder.embed, passes[0], perturbations, options.seed, group=BATCH_SIZE, with_prompt=with_prompt
        )
    if PROMPT_CONSISTENCY in kinds:
        consistency = prompt_consistency(embedder.embed, passes[1], embedder.predict_masks, with_prompt)
    for table in (*robustness_tables(found.as_json()), *prompt_consistency_tables(consistency)):
        Console().print(TerminalTable(f"{table.title}; {table.caption}", table.cells))
    report = {
        "tasks": found.as_json(),
        "model": str(arguments.model),
        "shards": arguments.shards,
        "limit": options.limit,
        "without_region": found.without_region,
        "neighbours": consistency.as_json(),
        "without_other_region": consistency.without_other_region,
        "context": context(seed=options.seed),
    }
    write_json(arguments.out / "robustness.json", report)
    if options.plots:
        plot_robustness(found, arguments.out)
    return 0


def evaluation_queries(embedder: Any) -> WithPrompt:
    """Let the embedder read inputs as `virtue-pl eval` does; return what gives queries their prompts in that form."""
    from virtue_pl.evaluation.probes.measurements import queries_in_format
    from virtue_pl.evaluation.probes.robustness import replace_prompt
    from virtue_pl.evaluation.retrieval.query_collator import EvaluationCollator
    from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator

    own = getattr(embedder, "collator", None)
    if not isinstance(own, ContrastiveCollator):
        return replace_prompt
    collator = EvaluationCollator(own, QueryFormat())
    embedder.collator = collator.collator
    return queries_in_format(collator)


def folders(shards: Sequence[str], out: Path, max_pixels: int = MAX_PIXELS) -> dict[str, str]:
    """Return folders of evaluation shards by name: as NAME=FOLDER says, or else the folder's own.

    A folder that has such folders in it stands for all of them, and one of one's own rows for the shards that they
    become, in `out`. Raises VirtueError for a name given twice.
    """
    named: list[tuple[str, str]] = []
    for number, entry in enumerate(shards):
        name, path = entry.split("=", 1) if "=" in entry else ("", entry)
        found = folders_in(path, out / str(number) if number else out, max_pixels)
        named += [(name or Path(folder).name, folder) for folder in found]
    if len(dict(named)) < len(named):
        names = ", ".join(shards)
        raise VirtueError(f"shards: {names} name a set twice, expected each once: write NAME=FOLDER")
    return dict(named)


def folders_in(path: str, target: Path, max_pixels: int) -> list[str]:
    """Return the folder of shards itself, or, where it holds none, those of rankings in it or made of its rows."""
    from virtue_pl.data.eval_sets.own import own_sets, ranked_shards
    from virtue_pl.data.io.remote import is_remote
    from virtue_pl.data.shards.manifest import MANIFEST

    if is_remote(path) or not Path(path).is_dir() or (Path(path) / MANIFEST).is_file():
        return [path]
    found = own_sets(ranked_shards(Path(path), target, max_pixels=max_pixels))
    return [str(files.shards.path) for files in found.values() if files.shards is not None] or [path]


def ranking_samples(
    folders: Mapping[str, str], limit: int | None, max_pixels: int = MAX_PIXELS
) -> Iterator[RankingSample]:
    """Return an iterator over every sample of the folders once, of each folder at most about `limit`.

    Those with an image of more than `max_pixels` are left out. Raises VirtueError at once for a folder without shards.
    """
    from virtue_pl.data.datamodules.own import OwnDataModule
    from virtue_pl.data.datamodules.scar import SCaRDataModule
    from virtue_pl.data.streaming.loader import RankingStream

    to_sample = region_samples(OwnDataModule.to_sample)
    data = SCaRDataModule(test=dict(folders), test_rows=limit)
    stream = RankingStream(
        data.test_folders,
        to_sample,
        list,
        batch_size=BATCH_SIZE,
        rows=limit,
        max_pixels=max_pixels,
        reader=data.reader_info(),
    )
    return named_samples(stream)


def named_samples(stream: RankingStream) -> Iterator[RankingSample]:
    """Yield a stream's samples; say at the end how many were left out, and why."""
    from virtue_pl.data.streaming.skip_log import skip_summary

    for batch in stream.samples(stream.reader, stream.log):
        yield from batch
    if stream.log.problems:
        print(f"left out: {skip_summary(stream.log.problems)}", file=sys.stderr)


def region_samples(to_sample: Callable[..., Any]) -> Callable[..., RankingSample]:
    """Return what reads a stored row as a sample with all that its query is written of, in any format."""
    from virtue_pl.data.eval_sets.images import ImageLibrary
    from virtue_pl.data.eval_sets.rows import RowReader
    from virtue_pl.data.eval_sets.shards import evaluation_row
    from virtue_pl.evaluation.probes.measurements import RegionSample
    from virtue_pl.types import DataError, RankingSample, SetDescription

    reader = RowReader(ImageLibrary())

    def read(row: Row, images: Sequence[RecordImage]) -> RankingSample:
        sample = to_sample(row, images)
        if not isinstance(sample, RankingSample):
            raise DataError(row.key, "it is a training pair, expected a query with candidates: name evaluation shards")
        if sample.region is None:
            return sample
        reader.library.sizes.update({image.content_key: image.size for image in images})
        keys = [image.content_key for image in images]
        return RegionSample(**vars(sample), row=evaluation_row(SetDescription(row.task, "scar"), reader, row, keys))

    return read


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl robustness",
        description="Ranks every query with boxes that are jittered and scaled, clicks that are off, and masks that "
        "are eroded, dilated and half hidden. Then points at each region with a click, its mask, the model's own mask "
        "and its filled box, and says whether that is nearer to its box than any other region of the image. "
        "Writes robustness.json and robustness_KIND.png.",
    )
    model = "an exported or published folder, a hub name, or a run's checkpoint (.ckpt)"
    shards = (
        "evaluation shards with regions, as `virtue-pl shards scar` or `shards pairs` writes them; a folder of such"
        " folders; or your own rows (test.jsonl, images/)"
    )
    out = "folder of the numbers and the curves"
    parser.add_argument("--model", required=True, metavar="FOLDER", help=model)
    parser.add_argument("--shards", required=True, nargs="+", metavar="[NAME=]FOLDER", help=shards)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=out)
    add_options(parser, RobustnessOptions)
    add_options(parser, LoadingOptions)
    add_max_pixels(parser, "are left out")
    return parser
