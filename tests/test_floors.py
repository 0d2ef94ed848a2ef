"""Imports only go down: every import of the package, at any depth of a function, is held against the floors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "virtue_pl"

FLOORS = (
    {"types"},
    {"prompts", "pooling", "distributed", "images", "recipes", "optimization", "sharding", "frozen_features", "feature_store", "memory", "precision"},
    {"backbones", "adapters", "folded_dora", "quick_dropout", "losses", "metrics"},
    {"parts", "gradient_cache", "virtue"},
    {"evaluation", "interop", "embedder"},
    {"data", "training"},
    {"cli", "app"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ENTRANCES = {"__init__", "__main__"}
"""Of the package itself: `__init__` imports nothing, `__main__` is the command."""

STRANGERS = {("data", "training"), ("training", "data"), ("data", "parts"), ("data", "virtue"), ("data", "evaluation"), ("evaluation", "data")}
"""Rooms that know each other only through types, whatever their floors."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import of this package in the file. Names imported from the package's root are rooms."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "virtue_pl")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write virtue_pl in full"
            if node.module == "virtue_pl":
                yield from ((node.lineno, f"virtue_pl.{alias.name}") for alias in node.names)
            elif node.module and node.module.split(".")[0] == "virtue_pl":
                yield node.lineno, node.module


def complaint(room: str, imported: str) -> str | None:
    """Why `room` may not import the room `imported`; None where it may."""
    if imported == room or imported == "__version__":
        return None
    if imported not in FLOOR_OF:
        return f"{imported} stands on no floor"
    if (room, imported) in STRANGERS:
        return f"{room} and {imported} know each other only through types"
    if FLOOR_OF[imported] > FLOOR_OF[room]:
        return f"{imported} is on floor {FLOOR_OF[imported]}, above {room} on floor {FLOOR_OF[room]}"
    return None


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    if room in ENTRANCES:
        assert [imported for _, imported in imports(path)] in ([], ["virtue_pl.cli.main"])
        return
    assert room in FLOOR_OF, f"{room} stands on no floor; say in this test which"
    complaints = [f"line {line}: {why}" for line, imported in imports(path) if (why := complaint(room, imported.split(".")[1]))]
    assert not complaints


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lightning_is_imported_under_one_name(path):
    text = path.read_text()
    assert "pytorch_lightning" not in text


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_named_for_what_they_hold(path):
    assert path.stem not in {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize(
    ("room", "imported", "allowed"),
    [
        ("types", "prompts", False),
        ("parts", "losses", True),
        ("parts", "data", False),
        ("data", "training", False),
        ("training", "parts", True),
        ("data", "parts", False),
        ("evaluation", "data", False),
        ("cli", "data", True),
        ("virtue", "parts", True),
        ("cli", "cellar", False),
    ],
)
def test_the_rule_itself(room, imported, allowed):
    assert (complaint(room, imported) is None) == allowed


def test_imports_inside_functions_and_from_the_root_are_seen(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def late():\n    from virtue_pl import data\n    import virtue_pl.cli.main\n    from virtue_pl.parts.part import Part\n")
    assert [name for _, name in imports(path)] == ["virtue_pl.data", "virtue_pl.cli.main", "virtue_pl.parts.part"]
