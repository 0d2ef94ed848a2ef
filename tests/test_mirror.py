"""The tests' folders mirror the package: each file is of a module or a package that exists, or of several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "src" / "virtue_pl"
OTHER_FOLDERS = {"fixtures", "fuzz", "resume", "gpu", "integration", "golden", "docs", "benchmarks", "browser"}
"""Folders beside the mirror: makers of models and files, what `make fuzz` and `make test-resume` run, tests of a
GPU, tests across packages, recorded outputs, tests of pages, of the scripts in benchmarks/, and of `virtue-pl demo`.
"""
OF_THE_REPOSITORY = {
    *("test_architecture", "test_docstrings", "test_environment", "test_faces", "test_mirror", "test_vocabulary"),
}
"""Tests on top that are of no module."""


def files_of_tests(tests: Path) -> list[Path]:
    """Return all Python files under `tests`, relative to it."""
    return sorted(path.relative_to(tests) for path in tests.rglob("*.py"))


def misplaced(files: list[Path], package: Path) -> Iterator[str]:
    """Yield a sentence for each file that stands where the mirror has no room for it.

    `tests/a/b/test_c.py` needs the module `a/b/c.py` or the package `a/b/c/`; `tests/a/b/test_b.py` is of the modules
    of `a/b/` together. A test stands in no folder of makers, and what is no test stands in no folder of tests.
    """
    for path in files:
        module = path.stem.removeprefix("test_")
        folder = package / path.parent
        is_test = path.name.startswith("test_")
        if path.parts[0] in ("fixtures", "fuzz", "resume"):
            if is_test:
                yield f"{path}: a test among the fixtures"
        elif not is_test:
            if path.name != "conftest.py":
                yield f"{path}: no test; what tests share belongs to fixtures/"
        elif path.parts[0] in OTHER_FOLDERS or (len(path.parts) == 1 and path.stem in OF_THE_REPOSITORY):
            continue
        elif not folder.is_dir():
            yield f"{path}: there is no package {path.parent.as_posix()}/; tests across packages belong to integration/"
        elif not ((folder / f"{module}.py").is_file() or (folder / module).is_dir() or module == folder.name):
            yield f"{path}: there is no module {(path.parent / module).as_posix()}"


def test_every_test_mirrors_a_module():
    assert list(misplaced(files_of_tests(TESTS), PACKAGE)) == []


def test_every_folder_holds_tests_or_is_known():
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert {name for name in folders - OTHER_FOLDERS if not (PACKAGE / name).is_dir()} == set()


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("models/test_virtue.py", None),
        ("data/streaming/test_streaming.py", None),
        ("integration/test_whatever.py", None),
        ("test_architecture.py", None),
        ("parts/test_virtue.py", "there is no package parts/"),
        ("models/test_connectors.py", "there is no module models/connectors"),
        ("test_virtue.py", "there is no module virtue"),
        ("models/tiny_models.py", "belongs to fixtures/"),
        ("fixtures/test_tiny.py", "a test among the fixtures"),
    ],
)
def test_a_file_out_of_the_mirror_is_found(file, complaint):
    found = list(misplaced([Path(file)], PACKAGE))
    assert found == [] if complaint is None else complaint in found[0]
