"""The names of evaluation sets, and their files: shards, or the official parquet files."""

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
"""Folders of MMEB's evaluation files by form: instruction and text in columns of their own, or joined."""
EXTRA_IMAGE_FOLDERS = ("MMEB-eval",)
"""Folders whose images the instruction form uses, too."""
SHARD_FORMS = {"instruct": "MMEB_instruct_", "v1": "MMEB_eval_"}
"""Prefixes of the folders of shards by MMEB's form."""
MINI_SPLITS = ("mini_test_seen", "mini_test_held_out")
_PREFIX = re.compile(r"^(?:scar_eval_|scar_|mmeb_eval_|mmeb_instruct_|mmeb_)", re.IGNORECASE)
_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})$")


@dataclass(frozen=True)
class SetFiles:
    """The files of a set: a folder of shards, or parquet files with their images.

    Example:
        >>> (about,) = resolve_sets(["RefCOCO+"])
        >>> SetFiles(about, tables=(Path("data/RefCOCO_plus.parquet"),)).about.benchmark
        'scar'
    """

    about: SetDescription
    shards: ShardFolder | None = None
    tables: tuple[Path, ...] = ()
    images: ImageFiles | None = None


def available_sets() -> dict[str, SetDescription]:
    """Return all sets by normalized name: the five of SCaR, the 36 of MMEB, and the small ones of both."""
    scar = [SetDescription(f"SCaR_{name}", "scar", "region captions") for name in scar_sets()]
    mini = [SetDescription(f"SCaR_{split}", "scar_mini", "region captions") for split in MINI_SPLITS]
    mmeb = [
        SetDescription(
            found.eval_folder, "mmeb" if found.distribution else "mmeb_mini", found.meta_task, found.distribution
        )
        for found in mmeb_sets().values()
    ]
    return {normalize_name(about.name): about for about in (*scar, *mini, *mmeb)}


def normalize_name(name: str) -> str:
    """Return what different spellings of a set's name share: "SCaR_eval_RefCOCO_plus" and "RefCOCO+" are one."""
    return _PREFIX.sub("", name).lower().replace("+", "_plus").replace("-", "_")


def resolvable(names: Sequence[str]) -> list[str]:
    """Return those of the names that are of a benchmark or of one of its sets."""
    available = available_sets()
    benchmarks = {about.benchmark for about in available.values()}
    return [name for name in names if name.lower() in benchmarks or normalize_name(name) in available]


def resolve_sets(names: Sequence[str], others: Iterable[str] = ()) -> list[SetDescription]:
    """Return the sets of the given names or benchmarks ("scar", "mmeb", "scar_mini", "mmeb_mini"), each once.

    others: further names that there are, for messages. Raises VirtueError for an unknown name, and for no name.
    """
    available = available_sets()
    benchmarks = dict.fromkeys(about.benchmark for about in available.values())
    found: dict[str, SetDescription] = {}
    for name in names:
        members = [about for about in available.values() if about.benchmark == name.lower()] or [
            available[key] for key in (normalize_name(name),) if key in available
        ]
        if not members:
            there = [*others, *benchmarks, *(about.name for about in available.values())]
            closest = get_close_matches(name, there, 1, 0.5)
            hint = f"; did you mean {closest[0]}?" if closest else ""
            raise VirtueError(
                f"--sets {name}: no such set, expected {', '.join([*others, *benchmarks])} or the name of one of their"
                f" sets{hint}"
            )
        found |= {about.name: about for about in members}
    if not found:
        raise VirtueError(f"--sets is empty, expected {', '.join(benchmarks)} or names of sets")
    return list(found.values())


def find_set(
    root: Path, about: SetDescription, form: str | None = None, images: Sequence[Path] = ()
) -> SetFiles | None:
    """Return the set's files under `root`, shards before others; None where there are none.

    `form` is that of MMEB's files, by default whichever exists; `images` are folders to look into first.
    """
    for folder in shard_folders(root, about, form):
        return SetFiles(about, shards=ShardFolder.open(folder, "--data"))
    for tables in table_groups(root, about, form):
        check_parts(tables, about)
        parent = tables[0].parent
        above = [root.parent] if root.name in ("data", *FORMS) else []
        beside = [root / name for name in EXTRA_IMAGE_FOLDERS if (root / name).is_dir()]
        roots = list(dict.fromkeys([root, parent, parent.parent, *beside, *above]))
        return SetFiles(about, tables=tuple(tables), images=ImageFiles.find(*roots, given=tuple(images)))
    return None


def check_parts(tables: Sequence[Path], about: SetDescription) -> None:
    """Raise VirtueError where a set is in several files, and one of them is missing."""
    named = [match for path in tables if (match := _PART.search(path.stem))]
    found = sorted((int(match["number"]), int(match["count"])) for match in named)
    expected = [(number, found[-1][1]) for number in range(found[-1][1])] if found else []
    if found != expected or len(named) not in (0, len(tables)):
        raise VirtueError(
            f"{about.name}: {tables[0].parent} holds {', '.join(path.name for path in tables)}, expected the"
            f" {len(expected)} files of one set: fetch those that are missing, or remove those of another"
        )


def shard_folders(root: Path, about: SetDescription, form: str | None) -> Iterator[Path]:
    """Yield the folders of evaluation shards of a set, in `root` and one level below."""
    for folder in sorted([root, *(path for path in root.glob("*") if path.is_dir())]):
        other_form = form is not None and folder.name.startswith(
            tuple(prefix for name, prefix in SHARD_FORMS.items() if name != form)
        )
        if (
            (folder / MANIFEST).is_file()
            and normalize_name(folder.name) == normalize_name(about.name)
            and not other_form
        ):
            if ShardFolder.open(folder, "--data").manifest.kind == "rankings":
                yield folder


def table_groups(root: Path, about: SetDescription, form: str | None) -> Iterator[list[Path]]:
    """Yield groups of parquet files that may be the set's, the likeliest first."""
    if about.benchmark.startswith("mmeb"):
        forms = [folder for name, folders in FORMS.items() if form in (None, name) for folder in folders]
        for folder in (*(root / form_folder / about.name for form_folder in forms), root / about.name):
            files = sorted(folder.glob("test-*.parquet")) or sorted(folder.glob("*.parquet"))
            if files:
                yield files
    for folder in (root, root / "data", *(path for path in sorted(root.glob("*")) if path.name.lower() == "scar-eval")):
        for parent in (folder, folder / "data"):
            files = [
                path
                for path in sorted(parent.glob("*.parquet"))
                if normalize_name(_PART.sub("", path.stem)) == normalize_name(about.name)
            ]
            if files:
                yield files


def mmeb_set_of(about: SetDescription) -> MMEBSet:
    """Return the entry of a set in MMEB's catalogue."""
    return next(found for found in mmeb_sets().values() if found.eval_folder == about.name)


def missing_sets(root: Path, names: Iterable[str]) -> str:
    """Return one line on sets without files."""
    listed = ", ".join(names)
    return (
        f"--data {root} has no files of {listed}: looked for shards, and for parquet files in it, in data/,"
        " instruct/SET and v1/SET"
    )
