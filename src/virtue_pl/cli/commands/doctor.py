"""`virtue-pl doctor`: look for what is wrong with shards or a dataset's folders."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from virtue_pl.cli.arguments import add_max_pixels, add_row_options, positive_number, row_options
from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.left_out import LeftOut, left_out_table
from virtue_pl.cli.progress import LoadingLine, show_progress
from virtue_pl.types import VirtueError, suggest_path

if TYPE_CHECKING:
    from rich.table import Table

    from virtue_pl.data.doctor.checks import Checkup

GROUP = "data"


def main(argv: list[str]) -> int:
    """Print the findings; returns 1 where errors were found (with --strict also warnings), else 0."""
    arguments = parser().parse_args(argv)
    loading = LoadingLine("libraries").start()
    from rich.console import Console

    from virtue_pl.data.conversion.source_file import no_progress
    from virtue_pl.data.doctor.checks import count_words
    from virtue_pl.data.doctor.contact_sheet import ContactSheet
    from virtue_pl.data.doctor.examine import count_errors, examine, to_json
    from virtue_pl.data.io.atomic import write_json

    loading.stop()
    sheet = ContactSheet()
    count_tokens = load_token_counter(arguments.tokenizer) if arguments.tokenizer else count_words
    options = {"max_pixels": arguments.max_pixels, "count_tokens": count_tokens, "on_finding": sheet.add}
    progress = no_progress if arguments.json == "-" else show_progress
    paths, rows = [Path(path) for path in arguments.paths], row_options(arguments)
    checkups = examine(paths, arguments.train_split, progress, arguments.workers, rows, **options)
    if arguments.json == "-":
        print(json.dumps(to_json(checkups), indent=1, ensure_ascii=False))
    elif arguments.json:
        write_json(Path(arguments.json), to_json(checkups))
    if arguments.sheet:
        sheet.save(Path(arguments.sheet))
    console = Console(stderr=arguments.json == "-")
    console.print(problems_table(checkups))
    console.print(histograms_table(checkups))
    if (left_out := left_out_table([rows_left_out(checkup) for checkup in checkups])) is not None:
        console.print(left_out)
    found = sum(len(checkup.findings) for checkup in checkups)
    errors = count_errors(checkups)
    counts = count(errors, "error"), count(found - errors, "warning"), count(len(checkups), "folder")
    print("{}, {} in {}".format(*counts), file=sys.stderr)
    return int((found if arguments.strict else errors) > 0)


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    about = (
        "Look at every image and row of shards or official folders, and say what is wrong. Exit code 1 if there are"
        " errors."
    )
    found = CommandParser(prog="virtue-pl doctor", description=about, allow_abbrev=False)
    found.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="folder of shards, of several such folders, of an official layout, or of your own data, which is then read"
        " as `shards pairs` reads it; leaks are sought among all",
    )
    found.add_argument("--json", metavar="FILE", help="write the findings there; - for standard output")
    found.add_argument("--sheet", metavar="PNG", help="write a contact sheet of the worst")
    found.add_argument("--strict", action="store_true", help="warnings count as errors")
    found.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="a Hugging Face tokenizer to measure texts with (default: words and marks are counted)",
    )
    found.add_argument(
        "--train-split", default="original", help="of MMEB-train: original (default) or diverse_instruction"
    )
    found.add_argument(
        "--workers",
        type=positive_number,
        default=1,
        help="processes that decode images, whose number changes nothing else (default 1)",
    )
    add_row_options(found)
    add_max_pixels(found, "are errors")
    return found


def count(number: int, thing: str) -> str:
    """Return a number of things in words, as "1 error" or "2 errors"."""
    return f"{number} {thing}{'s' * (number != 1)}"


def rows_left_out(checkup: Checkup) -> LeftOut:
    """Return the rows of a source that its conversion would leave out; of shards there are none."""
    counts = Counter(error.problem.partition(":")[0] for error in checkup.left_out)
    return LeftOut(checkup.name, checkup.rows, counts, [(error.key, error.problem) for error in checkup.left_out])


def load_token_counter(folder: str) -> Callable[[str], int]:
    """Return a function that counts a text's tokens by the tokenizer in a folder.

    Raises VirtueError where there is none.
    """
    from transformers import AutoTokenizer

    from virtue_pl.backbones.pretrained import readable_description

    if not Path(folder).is_dir():
        raise VirtueError(f"--tokenizer {folder}: there is no such folder{suggest_path(folder)}")
    with readable_description(folder):
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return lambda text: len(loaded(text, add_special_tokens=False)["input_ids"])


def problems_table(checkups: Sequence[Checkup]) -> Table:
    """Return a table with one row for each kind of problem of a folder, and the first finding of that kind.

    Of rows that a conversion would leave out it has their number alone: `left_out_table` has them by kind.
    """
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(
        "folder",
        Column("rows", justify="right"),
        "problem",
        Column("count", justify="right"),
        Column("first", overflow="fold"),
        title="problems",
    )
    for checkup in checkups:
        left_out = {(error.problem.partition(":")[0], error.key) for error in checkup.left_out}
        findings = [finding for finding in checkup.findings if (finding.kind, finding.key) not in left_out]
        kinds = list(dict.fromkeys(finding.kind for finding in findings))
        if left_out:
            count_left_out = f"{len(checkup.left_out):,}"
            name, rows = escape(checkup.name), f"{checkup.rows:,}"
            table.add_row(name, rows, "[red]left out[/]", count_left_out, "by reason in the table below")
        for kind in kinds:
            found = [finding for finding in findings if finding.kind == kind]
            style = "yellow" if found[0].is_warning else "red"
            first = escape(" ".join(filter(None, (found[0].key, found[0].image, found[0].detail))))
            table.add_row(
                escape(checkup.name), f"{checkup.rows:,}", f"[{style}]{escape(kind)}[/]", f"{len(found):,}", first
            )
        if not kinds and not left_out:
            table.add_row(escape(checkup.name), f"{checkup.rows:,}", "[green]none[/]", "0", "")
    return table


def histograms_table(checkups: Sequence[Checkup]) -> Table:
    """Return a table of two histograms over 2^n to 2^(n+1) - 1: images by shorter side in pixels, texts by tokens."""
    from rich.table import Column, Table

    sizes: Counter[int] = sum((checkup.sizes for checkup in checkups), Counter())
    lengths: Counter[int] = sum((checkup.lengths for checkup in checkups), Counter())
    table = Table(
        *(Column(name, justify="right") for name in ("from", "images by shorter side", "texts by tokens")),
        title="sizes",
    )
    for start in sorted({*sizes, *lengths}):
        table.add_row(
            f"{start:,}", f"{sizes[start]:,}" if sizes[start] else "", f"{lengths[start]:,}" if lengths[start] else ""
        )
    return table
