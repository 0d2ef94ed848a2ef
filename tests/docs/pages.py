"""The documentation's pages: their blocks, the commands in them as a shell expands them, links, and files they name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PROGRAMS = ("virtue-pl", "lightning", "make", "python", "tensorboard", "pip", "conda", "sudo", ".ci/run")
"""What blocks may call. Anything else is not found by the shell that expands them."""

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
RECORD = """#!/bin/bash
printf '%s\\0' "$PROGRAM" "$@" >> "$RECORDED"
printf '\\1\\0' >> "$RECORDED"
"""


class Block(NamedTuple):
    """A fenced block: its page, the line that it begins in, its language and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a block of shell as the shell calls them, loops and functions and braces expanded."""
        return expand(self.text)


@cache
def blocks() -> list[Block]:
    """Return every fenced block of every page, in order."""
    return [
        Block(page, text.count("\n", 0, match.start(2)) + 1, match[1], match[2])
        for page in PAGES
        for text in (page.read_text(encoding="utf-8"),)
        for match in BLOCK.finditer(text)
    ]


@cache
def expand(script: str) -> list[list[str]]:
    """Return what the script calls: bash runs it with programs that only write down their words, and has no others."""
    with TemporaryDirectory() as folder:
        recorded = Path(folder) / "recorded"
        recorded.touch()
        for program in PROGRAMS:
            stub = Path(folder) / "bin" / program
            stub.parent.mkdir(parents=True, exist_ok=True)
            stub.write_text(RECORD.replace("$PROGRAM", program))
            stub.chmod(0o755)
        environment = {"PATH": f"{folder}/bin", "RECORDED": str(recorded), "HOME": folder}
        bash = shutil.which("bash") or "/bin/bash"
        command = [bash, "--noprofile", "--norc", "-euc", script]
        done = subprocess.run(command, cwd=Path(folder) / "bin", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{script}\n{done.stderr}"
        words = recorded.read_text(encoding="utf-8").split("\0")
    commands: list[list[str]] = [[]]
    for word in words[:-1]:
        if word == "\1":
            commands.append([])
        else:
            commands[-1].append(word)
    return commands[:-1]


def prose(page: Path) -> str:
    """Return the page's text without its blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def spans() -> Iterator[tuple[Path, str]]:
    """Yield every page and span of code in its text, spaces and line ends as one space."""
    for page in PAGES:
        for match in SPAN.finditer(prose(page)):
            yield page, " ".join(match[1].split())


def links() -> Iterator[tuple[Path, str]]:
    """Yield every page and relative target of a link or an image in it."""
    for page in PAGES:
        for match in LINK.finditer(prose(page)):
            if "://" not in match[1]:
                yield page, match[1]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def named_files() -> Iterator[tuple[Path, str]]:
    """Yield every page and path with a slash in a span of code, unless a command writes it or people bring it."""
    for page, span in spans():
        for word in span.split():
            looks_like_one = re.fullmatch(r"[\w.-]+/(?:[\w.-]+/)*(?:[\w-]+\.\w+)?", word)
            if looks_like_one and not word.startswith(OUTPUTS):
                yield page, word


OUTPUTS = ("runs/", "data/scar_mini", "data/shards/", "data/cache/", "images/", "images_zip/", "my_pairs/")
"""Beginnings of paths that commands write, or that people bring."""


def exists(page: Path, name: str) -> bool:
    """Whether the path is there, from the repository's root, the page's folder, the package's or configs/."""
    folders = (ROOT, page.parent, ROOT / "src" / "virtue_pl", ROOT / "configs", ROOT / "src" / "virtue_pl" / "cli")
    return any(os.path.exists(folder / name) for folder in folders)
