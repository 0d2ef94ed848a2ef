"""Rankings of one's own: any folder of evaluation shards, or a folder of rows, which become shards first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from virtue_pl.data.conversion.own_sources import find_sources
from virtue_pl.data.conversion.pairs import convert_pairs
from virtue_pl.data.eval_sets.files import SetFiles, available_sets, find_set, normalize_name
from virtue_pl.data.eval_sets.plan import input_key
from virtue_pl.data.shards.manifest import MANIFEST, ShardFolder
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.types import EmbeddingInput, EvaluationRow, SetDescription, VirtueError, suggest_path

EVALUATED_SPLITS = ("test", "val")
"""Names of folders of one's own that are to be evaluated."""
EXPECTED = "evaluation ranks the `candidates` of each row, the right one first (docs/data.md)"


def own_sets(root: Path, pairs: bool = False) -> dict[str, SetFiles]:
    """Return the folders of evaluation shards in `root`, itself or one level below, by their names.

    pairs: take shards of training pairs, too, where they are called test or val, or where there are no others. Raises
    VirtueError for folders that cannot be read, and where a test or val without candidates would be left out.
    """
    folders = {path.resolve().name: ShardFolder.open(path, "--data") for path in shard_folders_in(root)}
    kinds = {name: folder.manifest.kind for name, folder in folders.items()}
    named = [name for name in folders if name in EVALUATED_SPLITS and kinds[name] == "pairs"]
    if named and not pairs:
        raise VirtueError(
            f"--data {folders[named[0]].path} holds pairs, whose rows have a `target` and no candidates, but"
            f" {EXPECTED}: add them, or rank the targets of all rows by --candidates all"
        )
    chosen = [name for name in folders if kinds[name] == "rankings" or name in named]
    if pairs and not chosen:
        chosen = list(folders)
    return {name: SetFiles(describe_set(name), shards=folders[name]) for name in chosen}


def shard_folders_in(root: Path) -> Iterator[Path]:
    """Yield the folders of shards in `root`: itself, or those one level below."""
    if (root / MANIFEST).is_file():
        yield root
        return
    yield from (path.parent for path in sorted(root.glob(f"*/{MANIFEST}")))


def describe_set(name: str) -> SetDescription:
    """Return what is known of a set by its folder's name; one that is not of a benchmark belongs to "own"."""
    return available_sets().get(normalize_name(name)) or SetDescription(name, "own")


def find_all_sets(
    root: Path, form: str | None = None, images: Sequence[Path] = (), pairs: bool = False
) -> dict[SetDescription, SetFiles | None]:
    """Return all sets that have files in `root`: one's own, and those of the benchmarks.

    Raises VirtueError where there are none.
    """
    own = own_sets(root, pairs)
    found: dict[SetDescription, SetFiles | None] = {files.about: files for files in own.values()}
    for about in available_sets().values():
        if about not in found and (files := find_set(root, about, form, images)) is not None:
            found[about] = files
    if not found:
        there = ", ".join(path.name for path in shard_folders_in(root))
        what = f"shards of training pairs ({there})" if there else "no shards of rankings"
        raise VirtueError(f"--data {root} holds {what}, but {EXPECTED}; `virtue-pl shards pairs` writes such shards")
    return found


def ranked_shards(root: Path, target: Path, candidates: str = "own", max_pixels: int = MAX_PIXELS) -> Path:
    """Return `root`, or `target` with the shards of its rows, where it is a folder of one's own rows (test.jsonl, ...).

    target: the folder to write, which is replaced where it is there. Rows of training are left alone. Raises
    VirtueError where none of the rows has candidates, and as `convert_pairs` does.
    """
    if not root.is_dir():
        raise VirtueError(f"--data {root}: there is no such folder{suggest_path(root)}")
    if any(shard_folders_in(root)) or any(find_set(root, about) for about in available_sets().values()):
        return root
    if os.environ.get("LOCAL_RANK", "0") != "0":  # another process of this run has written them
        return target
    sources = [source.name for source in find_sources(root, "--data")]
    shutil.rmtree(target, ignore_errors=True)
    kinds = ("rankings", "pairs") if candidates == "all" else ("rankings",)
    made = convert_pairs(root, target, max_pixels=max_pixels, kinds=kinds)
    if not made:
        raise VirtueError(
            f"--data {root} has {', '.join(sources)}, whose rows have no candidates, but {EXPECTED}; or give"
            " --candidates all to rank the targets of all rows"
        )
    return target


def rank_all_answers(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """Return the rows, each with the right answers of all of them as its candidates, every content once."""
    pool: dict[str, int] = {}
    answers: list[EmbeddingInput] = []
    right: list[int] = []
    for row in rows:
        answer = row.candidates[row.rankings["hit@1"][0]]
        number = pool.setdefault(input_key(answer), len(answers))
        if number == len(answers):
            answers.append(answer)
        right.append(number)
    candidates = tuple(answers)
    others = range(len(candidates))
    return [
        replace(
            row, candidates=candidates, rankings={"hit@1": (number, *(other for other in others if other != number))}
        )
        for row, number in zip(rows, right, strict=True)
    ]
