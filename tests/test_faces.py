"""The public face of every package: its names resolve, importing it is cheap, and configs name classes through it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import virtue_pl
from fixtures.tiny_release import quickstart_spec, release, run_checkpoint
from virtue_pl.checkpoints.class_paths import import_class, public_path
from virtue_pl.cli.commands import export
from virtue_pl.cli.main import main

ROOT = Path(__file__).parents[1]
SOURCE = Path(virtue_pl.__file__).parent
FACES = {".".join(("virtue_pl", *stub.parent.relative_to(SOURCE).parts)): stub for stub in SOURCE.rglob("__init__.pyi")}
OPTIONAL = {"virtue_pl.integrations": ("langchain_core", "lancedb", "mteb", "sentence_transformers")}
"""Packages whose names need packages that are not always installed."""
CLASS_PATH = re.compile(r"class_path[\"']?\s*[:=]\s*[\"']?(virtue_pl(?:\.\w+)+)")
TEXTS = [
    *(path for folder in ("configs", "tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.yaml")),
    *(path for folder in ("docs", "benchmarks") for path in (ROOT / folder).rglob("*.md")),
    *(ROOT / "tests").rglob("*.py"),
    ROOT / "README.md",
]
NOT_CLASSES = {
    "virtue_pl.cli.main.import_module",
    "virtue_pl.models.virtue.Path",
    "virtue_pl.models.virtue.Virtual",
    "virtue_pl.recipes.ReferenceRecipe",
}
"""Class paths in tests of what is refused."""


def stated_names(stub: Path) -> list[str]:
    """Return the names that a face exports."""
    imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    return [str(alias.asname) for node in imports for alias in node.names]


def class_paths(spec: object) -> list[str]:
    """Return every class path in nested YAML."""
    if isinstance(spec, dict):
        own = [str(spec["class_path"])] if "class_path" in spec else []
        return own + [path for value in spec.values() for path in class_paths(value)]
    return [path for value in spec for path in class_paths(value)] if isinstance(spec, list) else []


def is_in_a_face(path: str) -> bool:
    """Return whether a class path is FACE.NAME and the face states the name."""
    face, _, name = path.rpartition(".")
    return face in FACES and name in stated_names(FACES[face])


@pytest.mark.parametrize("face", sorted(FACES))
def test_every_name_of_a_face_resolves(face):
    for package in OPTIONAL.get(face, ()):
        pytest.importorskip(package)
    module, names = import_module(face), stated_names(FACES[face])
    assert names and len(set(names)) == len(names)
    for name in names:
        assert getattr(module, name) is not None and name in dir(module)


@pytest.mark.parametrize("code", ["import virtue_pl", "from virtue_pl import VirtueError, __version__"])
def test_the_root_imports_no_torch(code):
    heavy = "{'torch', 'lightning', 'numpy', 'transformers', 'PIL'}"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(sorted({heavy} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_class_paths_in_the_repository_go_through_faces():
    found = {path: text for text in TEXTS for path in CLASS_PATH.findall(text.read_text(encoding="utf-8"))}
    wrong = {path: str(text.relative_to(ROOT)) for path, text in found.items() if not is_in_a_face(path)}
    assert {path: text for path, text in wrong.items() if path not in NOT_CLASSES} == {}
    assert len(found) > 40
    assert [path for path in found if path not in NOT_CLASSES and import_class(path) is None] == []


def test_a_written_config_names_classes_through_faces(capsys):
    assert main(["fit", "--config", str(ROOT / "configs" / "virtue_mini.yaml"), "--print_config"]) == 0
    found = [path for path in class_paths(yaml.safe_load(capsys.readouterr().out)) if path.startswith("virtue_pl.")]
    assert len(found) > 15 and [path for path in found if not is_in_a_face(path)] == []


def test_exported_folders_name_classes_through_faces(tmp_path):
    (tmp_path / "files").mkdir()
    checkpoint = run_checkpoint(tmp_path / "run", quickstart_spec(tmp_path / "files"))
    assert export.main([str(checkpoint), "--out", str(tmp_path / "exported")]) == 0
    written = class_paths(yaml.safe_load((tmp_path / "exported" / "virtue.yaml").read_text()))
    published = class_paths(release().spec)
    assert len(written) > 8 and len(published) > 8
    assert [path for path in (*written, *published) if not is_in_a_face(path)] == []


def test_a_class_without_a_face_is_named_in_full():
    found = import_class("virtue_pl.models.virtue.Virtue")
    assert public_path(found) == "virtue_pl.models.Virtue"
    assert public_path(Path) == f"{Path.__module__}.Path"
