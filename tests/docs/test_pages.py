"""README is a first page, every link leads somewhere, and every file that a page names is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.pages import PAGES, ROOT, anchors, blocks, exists, links, named_files, spans
from virtue_pl.cli.main import COMMANDS

README = ROOT / "README.md"


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_readme_has_fewer_than_900_words() -> None:
    assert len(README.read_text(encoding="utf-8").split()) < 900


def test_readme_shows_python_before_line_40() -> None:
    assert min(block.line for block in blocks() if block.page == README and block.language == "python") < 40


def test_readme_names_every_page_of_docs() -> None:
    targets = {target.partition("#")[0] for page, target in links() if page == README}
    assert {relative(page) for page in PAGES if page.parent.name == "docs"} <= targets


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in (target for owner, target in links() if owner == page):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{relative(page)} links to {target}, which is not there"
        assert not anchor or anchor in anchors(found), f"{relative(page)} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    missing = {name for owner, name in named_files() if owner == page and not exists(page, name)}
    assert not missing, f"{relative(page)} names {', '.join(sorted(missing))}"


def test_a_command_in_the_text_is_one() -> None:
    """`virtue-pl NAME` and `make TARGET` in a sentence; those with options stand in blocks, which are run."""
    commands = {name for group in COMMANDS.values() for name in group}
    targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line}
    for page, span in spans():
        program, *arguments = span.split()
        covered = {"virtue-pl": {*commands, "--help"}, "lightning": commands, "make": targets}.get(program)
        if covered is not None and arguments:
            assert arguments[0] in covered, f"{relative(page)} says `{span}`"
            assert not any(word.startswith("--") and word != "--help" for word in arguments), (
                f"a block for `{span}`, please"
            )
