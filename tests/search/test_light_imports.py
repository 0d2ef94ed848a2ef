"""Imports of libraries without the parts that a command does not use; asked for later, the parts are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from virtue_pl.search.light_imports import DeferredPackage, defer_package, hide_module

SCRIPT = """
import sys
from virtue_pl.search.light_imports import lighten_lancedb

lighten_lancedb()
import lancedb

table = lancedb.connect(sys.argv[1]).create_table("rows", [{"id": "a", "vector": [1.0, 0.0]}])
assert [row["id"] for row in table.search([1.0, 0.0]).limit(1).to_list()] == ["a"]
for name in ("pandas", "urllib3", "lance_namespace_urllib3_client.api"):
    assert name not in sys.modules, name

import lance_namespace_urllib3_client

assert lance_namespace_urllib3_client.TableApi.__name__ == "TableApi" and lance_namespace_urllib3_client.__version__
assert len(table.to_pandas()) == 1
"""


def test_lancedb_searches_without_pandas_and_finds_it_when_asked(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose own `__init__` counts its runs, and which is forgotten behind the test."""
    name = "package_to_defer"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("import sys\nsys.runs = getattr(sys, 'runs', 0) + 1\nvalue = 3\n")
    (folder / "part.py").write_text("number = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "runs", 0, raising=False)
    for each in (name, f"{name}.part"):
        monkeypatch.setitem(sys.modules, each, None)  # so that the test's own is removed behind it
        del sys.modules[each]
    return name


def test_a_deferred_package_runs_when_it_is_first_asked_for_a_name(package: str) -> None:
    defer_package(package)
    from package_to_defer.part import number  # type: ignore[import-not-found]

    assert number == 7 and sys.runs == 0  # type: ignore[attr-defined]
    module = sys.modules[package]
    assert isinstance(module, DeferredPackage)
    with pytest.raises(AttributeError, match="__missing__"):
        _ = module.__missing__
    assert module.value == 3 and module.part.number == 7 and not isinstance(module, DeferredPackage)
    assert sys.runs == 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="missing"):
        _ = module.missing
    defer_package(package)
    assert sys.modules[package] is module, "one that is imported stays"


def test_what_is_no_package_is_not_deferred() -> None:
    defer_package("no_such_package_at_all")
    assert "no_such_package_at_all" not in sys.modules


def test_a_hidden_module_is_found_again_behind_the_block(package: str) -> None:
    finders = list(sys.meta_path)
    with hide_module(package), pytest.raises(ModuleNotFoundError):
        import package_to_defer
    assert sys.meta_path == finders
    import package_to_defer

    assert package_to_defer.value == 3
