"""Which evaluation sets are asked for, and where their files are: shards, or the official parquet files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from virtue_pl.data.formats.catalogue import MMEBSet, mmeb_sets, scar_sets
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.manifest import MANIFEST, ShardFolder
from virtue_pl.types import SetDescription, VirtueError

FORMS = {"instruct": ("instruct", "MMEB_Test_Instruct"), "v1": ("v1", "MMEB-eval")}
"""MMEB's evaluation files: instruction and text in columns of their own, or joined; and the folders in which each lies.
"""
BESIDE = ("MMEB-eval",)
"""Folders whose images the instruction form shows, too."""
SHARD_FORMS = {"instruct": "MMEB_instruct_", "v1": "MMEB_eval_"}
MINI_SPLITS = ("mini_test_seen", "mini_test_held_out")
_PREFIX = re.compile(r"^(?:scar_eval_|scar_|mmeb_eval_|mmeb_instruct_|mmeb_)", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class SetFiles:
    """Where a set is: in a folder of shards, or in parquet files with their images."""

    about: SetDescription
    shards: ShardFolder | None = None
    tables: tuple[Path, ...] = ()
    images: ImageFiles | None = None


def known_sets() -> dict[str, SetDescription]:
    """By its spelling without prefix: the five of SCaR, the 36 of MMEB, and the small ones of both."""
    scar = [SetDescription(f"SCaR_{name}", "scar", "region captions") for name in scar_sets()]
    mini = [SetDescription(f"SCaR_{split}", "scar_mini", "region captions") for split in MINI_SPLITS]
    mmeb = [
        SetDescription(
            found.eval_folder, "mmeb" if found.distribution else "mmeb_mini", found.meta_task, found.distribution
        )
        for found in mmeb_sets().values()
    ]
    return {spelling(about.name): about for about in (*scar, *mini, *mmeb)}


def spelling(name: str) -> str:
    """What different spellings of a set's name have in common: "SCaR_eval_RefCOCO_plus" and "RefCOCO+" are one."""
    return _PREFIX.sub("", name).lower().replace("+", "_plus").replace("-", "_")


def asked_for(names: Sequence[str]) -> list[SetDescription]:
    """The sets of the given names or benchmarks ("scar", "mmeb", "scar_mini", "mmeb_mini"), each once. Raises
    VirtueError for an unknown one.
    """
    known = known_sets()
    benchmarks = dict.fromkeys(about.benchmark for about in known.values())
    found: dict[str, SetDescription] = {}
    for name in names:
        members = [about for about in known.values() if about.benchmark == name.lower()] or [
            known[key] for key in (spelling(name),) if key in known
        ]
        if not members:
            closest = get_close_matches(name, [*benchmarks, *(about.name for about in known.values())], 1, 0.5)
            hint = f"; did you mean {closest[0]}?" if closest else ""
            raise VirtueError(
                f"--sets {name}: no such set, expected {', '.join(benchmarks)} or the name of one of their sets{hint}"
            )
        found |= {about.name: about for about in members}
    if not found:
        raise VirtueError(f"--sets is empty, expected {', '.join(benchmarks)} or names of sets")
    return list(found.values())


def find_set(
    root: Path, about: SetDescription, form: str | None = None, images: Sequence[Path] = ()
) -> SetFiles | None:
    """The set's files under `root`, shards first; None where there are none. form: of MMEB's files, by default
    whichever is there.
    """
    for folder in shard_folders(root, about, form):
        return SetFiles(about, shards=ShardFolder.open(folder, "--data"))
    for tables in table_groups(root, about, form):
        parent = tables[0].parent
        above = [root.parent] if root.name in ("data", *FORMS) else []
        beside = [root / name for name in BESIDE if (root / name).is_dir()]
        roots = list(dict.fromkeys([root, parent, parent.parent, *beside, *above]))
        return SetFiles(about, tables=tuple(tables), images=ImageFiles.below(*roots, given=tuple(images)))
    return None


def shard_folders(root: Path, about: SetDescription, form: str | None) -> Iterator[Path]:
    for folder in sorted([root, *(path for path in root.glob("*") if path.is_dir())]):
        other_form = form is not None and folder.name.startswith(
            tuple(prefix for name, prefix in SHARD_FORMS.items() if name != form)
        )
        if (folder / MANIFEST).is_file() and spelling(folder.name) == spelling(about.name) and not other_form:
            if ShardFolder.open(folder, "--data").manifest.kind == "rankings":
                yield folder


def table_groups(root: Path, about: SetDescription, form: str | None) -> Iterator[list[Path]]:
    """Groups of parquet files that may be the set's, the likeliest first."""
    if about.benchmark.startswith("mmeb"):
        places = [place for name, folders in FORMS.items() if form in (None, name) for place in folders]
        for folder in (*(root / place / about.name for place in places), root / about.name):
            files = sorted(folder.glob("test-*.parquet")) or sorted(folder.glob("*.parquet"))
            if files:
                yield files
    for folder in (root, root / "data", *(path for path in sorted(root.glob("*")) if path.name.lower() == "scar-eval")):
        for place in (folder, folder / "data"):
            files = [
                path
                for path in sorted(place.glob("*.parquet"))
                if spelling(_PART.sub("", path.stem)) == spelling(about.name)
            ]
            if files:
                yield files


def dataset_of(about: SetDescription) -> MMEBSet:
    """What the table of MMEB says of the set."""
    return next(found for found in mmeb_sets().values() if found.eval_folder == about.name)


def missing_sets(root: Path, names: Iterable[str]) -> str:
    """One line on sets without files."""
    listed = ", ".join(names)
    return (
        f"--data {root} has no files of {listed}: looked for shards, and for parquet files in it, in data/,"
        " instruct/SET and v1/SET"
    )
