"""`virtue-pl robustness --model FOLDER --shards FOLDER --out FOLDER`: what imprecise prompts cost, and which variants to point are alike."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from virtue_pl.types import VirtueError

if TYPE_CHECKING:
    from virtue_pl.types import RankingSample

PROMPT_CONSISTENCY = "prompt_consistency"
"""The kind that asks whether embeddings of a region lie together however it is pointed at."""
GROUP = 8
"""Samples, with all their prompts, that are embedded together."""


def main(argv: list[str]) -> int:
    """Prints the tables; writes robustness.json and a curve for each kind."""
    arguments = _parser().parse_args(argv)
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from rich.console import Console
    from rich.progress import track

    from virtue_pl.embedder import Embedder
    from virtue_pl.evaluation.perturbations import PERTURBATIONS
    from virtue_pl.evaluation.prompt_consistency import PromptConsistency, prompt_consistency_tables, prompt_consistency
    from virtue_pl.evaluation.report import context, write_json
    from virtue_pl.evaluation.robustness import Robustness, robustness, robustness_tables
    from virtue_pl.evaluation.robustness_plots import plot_robustness
    from virtue_pl.evaluation.tables import TerminalTable

    sets = folders(arguments.shards)
    passes = [track(ranking_samples(sets, arguments.limit), what, console=Console(stderr=True)) for what in ("imprecise prompts", "other prompts")]
    options = {"device": arguments.device, "dtype": arguments.dtype, "batch_size": arguments.batch_size, "cached_pictures": 2 * GROUP}
    embedder = Embedder.from_pretrained(arguments.model, sam_checkpoint=arguments.sam_checkpoint, **options)
    kinds = arguments.kinds or (*PERTURBATIONS, PROMPT_CONSISTENCY)
    found, near = Robustness(), PromptConsistency()
    if perturbed := [kind for kind in kinds if kind != PROMPT_CONSISTENCY]:
        found = robustness(embedder.embed, passes[0], perturbed, arguments.seed, group=GROUP)
    if PROMPT_CONSISTENCY in kinds:
        near = prompt_consistency(embedder.embed, passes[1], embedder.masks)
    for table in (*robustness_tables(found.as_json()), *prompt_consistency_tables(near)):
        Console().print(TerminalTable(f"{table.title}; {table.caption}", table.cells))
    about = {"model": str(arguments.model), "shards": arguments.shards, "limit": arguments.limit, "without_region": found.without_region}
    about |= {"neighbours": near.as_json(), "without_other_region": near.without_other_region}
    write_json(arguments.out / "robustness.json", {"tasks": found.as_json(), **about, "context": context(seed=arguments.seed)})
    if not arguments.no_plots:
        plot_robustness(found, arguments.out)
    return 0


def folders(given: list[str]) -> dict[str, str]:
    """Folders of shards by name: as NAME=FOLDER says, or else the folder's own."""
    named = [(entry.partition("=")[0], entry.partition("=")[2]) if "=" in entry else (Path(entry).name, entry) for entry in given]
    if len(dict(named)) < len(named):
        raise VirtueError(f"shards: {', '.join(given)} name a set twice, expected each once: write NAME=FOLDER")
    return dict(named)


def ranking_samples(folders: Mapping[str, str], limit: int | None) -> Iterator[RankingSample]:
    """Every sample of the folders once, of each at most about `limit`. Raises VirtueError at once for a folder without shards."""
    from virtue_pl.data.loader import RankingStream
    from virtue_pl.data.scar import SCaRDataModule
    from virtue_pl.data.stream import Place

    data = SCaRDataModule(test=dict(folders), test_rows=limit)
    limits = {"max_bad_samples": data.max_bad_samples, "max_consecutive_bad": data.max_consecutive_bad}
    stream = RankingStream(data.test_folders, data.to_sample, list, batch_size=GROUP, rows=limit, max_pixels=data.max_pixels, rank=0, world=1, **limits)
    return (sample for batch in stream.samples(Place(), stream.log) for sample in batch)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="virtue-pl robustness",
        description="Ranks every query with boxes that are jittered and scaled, clicks that are off, and masks that are eroded, dilated and half hidden. "
        "Then points at each region with a click, its mask, the model's own mask and its box_mask box, and says whether that is nearer to its box "
        "than any other region of the picture. Writes robustness.json and robustness_KIND.png.",
    )
    parser.add_argument("--model", required=True, metavar="FOLDER", help="an exported or published folder, a hub name, or a run's checkpoint (.ckpt)")
    parser.add_argument(
        "--shards", required=True, nargs="+", metavar="[NAME=]FOLDER", help="evaluation shards with regions, as `virtue-pl shards scar` writes them"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the numbers and the curves go")
    parser.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="some of box_jitter, box_scale, click_offset, mask_erosion, mask_dilation, mask_cover, neighbours; default all",
    )
    parser.add_argument("--limit", type=int, help="of each set only the first pictures, as many as have so many rows")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    parser.add_argument("--sam-checkpoint", type=Path, help="SAM's checkpoint of a published release, or the folder that it is in")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; by default a GPU where there is one")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    parser.add_argument("--batch-size", type=int, default=32, help="queries that are encoded at once (default 32)")
    parser.add_argument("--no-plots", action="store_true", help="numbers alone, without matplotlib")
    return parser
