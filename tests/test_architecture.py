"""The architecture: an import goes down, or to another package of its layer, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "virtue_pl"

LAYERS = (
    {"types", "preprocessing"},
    {"backbones", "engine", "losses", "metrics", "features", "cluster"},
    {"models", "adapters"},
    {"checkpoints", "embedder"},
    {"evaluation", "search", "integrations", "parity"},
    {"data", "callbacks"},
    {"apps"},
    {"cli", "pipelines"},
)
"""Packages from the bottom up, as in the table of CONTRIBUTING.md."""

SUB_LAYERS = {
    "data": (
        {"io"},
        {"formats", "shards", "scenes"},
        {"streaming", "conversion", "download"},
        {"eval_sets", "doctor"},
        {"datamodules"},
    ),
    "evaluation": ({"settings"}, {"retrieval"}, {"statistics"}, {"probes"}, {"reports"}, {"evaluator"}),
    "backbones": (
        {
            *("attention_masks", "cpu_tiles", "description", "hub_models"),
            *("pretrained", "strict_weights", "text_encoder", "timm_trunk"),
        },
        {"vlm", "segmentation"},
        {"class_names"},
    ),
}
"""Sub-packages of the packages that have them, from the bottom up."""

FORBIDDEN = {
    ("data", "preprocessing"): {"preprocessing.images", "preprocessing.image_formats", "preprocessing.segmentations"},
    ("data", "models"): set(),
    ("data", "evaluation"): set(),
    ("data", "callbacks"): set(),
    ("callbacks", "data"): set(),
    ("evaluation.probes", "evaluation.reports"): set(),
    ("cli.commands", "cli.commands"): set(),
    ("pipelines", "cli"): set(),
}
"""(importer, imported): the modules that may be imported all the same."""

MAX_MODULES, MAX_LINES, MAX_ARGUMENTS = 14, 400, 15


def read_imports(module: str, source: str) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every import of this package in a module's source, those inside functions too.

    `from virtue_pl.data import io` gives "virtue_pl.data.io"; a name that is no module is cut off by `imports_of`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "virtue_pl")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import; write virtue_pl in full"
            if node.module and node.module.split(".")[0] == "virtue_pl":
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@cache
def package_imports() -> tuple[tuple[str, tuple[tuple[int, str], ...]], ...]:
    """Return every module of the package by its dotted name below virtue_pl, with its imports."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append((name, tuple(read_imports(name, path.read_text()))))
    return tuple(found)


def imports_of(planted: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Return, for each module, the modules of the package that it imports and the line where it does.

    planted: sources of modules that stand beside those of the package.
    """
    modules = dict(package_imports()) | {name: tuple(read_imports(name, source)) for name, source in planted.items()}
    found: dict[str, dict[str, int]] = {}
    for name, imports in modules.items():
        found[name] = {}
        for line, imported in imports:
            parts = imported.split(".")[1:]
            while parts and ".".join(parts) not in modules:
                parts = parts[:-1]
            if parts and ".".join(parts) != name:
                found[name][".".join(parts)] = line
    return found


def layer_complaints(imports: Mapping[str, Mapping[str, int]], prefix: str, layers: tuple[set[str], ...]) -> list[str]:
    """Return what goes up or stands in no layer, between the packages directly below `prefix` ("" for the root)."""
    layer_of = {name: number for number, names in enumerate(layers) for name in names}
    complaints = []
    for module, found in imports.items():
        importer = child_of(module, prefix)
        if importer is None:
            continue
        if importer not in layer_of:
            complaints.append(
                f"{module}: {importer} stands in no layer of {prefix or 'virtue_pl'}; say in this test which"
            )
            continue
        for imported, line in found.items():
            target = child_of(imported, prefix)
            if target is None or target == importer:
                continue
            if layer_of.get(target, -1) > layer_of[importer]:
                complaints.append(f"{module}:{line} imports {imported}, a layer above it")
    return complaints


def child_of(module: str, prefix: str) -> str | None:
    """Return the name of the package directly below `prefix` that a module is in; None for one that is not below it."""
    parts, above = module.split("."), prefix.split(".") if prefix else []
    if parts[: len(above)] != above or len(parts) == len(above) or parts == [""] or parts[0] == "__main__":
        return None
    return parts[len(above)]


def find_circles(imports: Mapping[str, Mapping[str, int]], prefix: str) -> list[str]:
    """Return a sentence for each circle of imports between the packages directly below `prefix`."""
    edges: dict[str, set[str]] = {}
    for module, found in imports.items():
        importer = child_of(module, prefix)
        targets = {child_of(imported, prefix) for imported in found}
        if importer is not None:
            edges.setdefault(importer, set()).update(target for target in targets if target not in (None, importer))
    circles, done = [], set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circles.append(" -> ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for target in sorted(edges.get(name, ())):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())
    return circles


def forbidden_imports(imports: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return what breaks a rule beside the layers."""
    complaints = []
    for (importer, imported), allowed in FORBIDDEN.items():
        for module, found in imports.items():
            for target, line in found.items():
                if (
                    is_below(module, importer)
                    and is_below(target, imported)
                    and target not in allowed
                    and target != importer
                ):
                    complaints.append(f"{module}:{line} imports {target}: {importer} may not import {imported}")
    for module, found in imports.items():
        if not is_below(module, "cli") and module != "__main__":
            complaints += [
                f"{module}:{line} imports a command"
                for target, line in found.items()
                if is_below(target, "cli.commands")
            ]
    return complaints


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def complaints_about(planted: Mapping[str, str]) -> list[str]:
    """Return everything in which the package, with planted modules, breaks the architecture."""
    imports = imports_of(planted)
    found = layer_complaints(imports, "", LAYERS) + find_circles(imports, "") + forbidden_imports(imports)
    for prefix, layers in SUB_LAYERS.items():
        found += layer_complaints(imports, prefix, layers) + find_circles(imports, prefix)
    return found


def test_imports_go_down_and_in_no_circle():
    assert complaints_about({}) == []


UP, RULE = "a layer above", "may not import"


@pytest.mark.parametrize(
    ("planted", "complaint"),
    [
        ({"losses.planted": "from virtue_pl.models.virtue import Virtue"}, UP),
        ({"types.planted": "def late():\n    from virtue_pl import engine"}, UP),
        ({"engine.planted": "from virtue_pl.losses import base"}, "engine -> losses -> engine"),
        ({"data.io.planted": "from virtue_pl.data.datamodules.scar import SCaRDataModule"}, UP),
        ({"evaluation.retrieval.planted": "import virtue_pl.evaluation.reports.tables"}, UP),
        ({"backbones.vlm.planted": "from virtue_pl.backbones.class_names import ClassNames"}, UP),
        (
            {
                "data.formats.planted": "from virtue_pl.data.shards import planted",
                "data.shards.planted": "from virtue_pl.data.formats import planted",
            },
            "formats -> shards -> formats",
        ),
        ({"evaluation.probes.planted": "import virtue_pl.evaluation.reports.tables"}, f"evaluation.probes {RULE}"),
        ({"data.streaming.planted": "from virtue_pl.preprocessing.prompts import erode"}, f"data {RULE} preprocessing"),
        ({"callbacks.planted": "from virtue_pl.data.shards import manifest"}, f"callbacks {RULE} data"),
        ({"pipelines.planted": "from virtue_pl.cli.commands import shards"}, "imports a command"),
        ({"strange.planted": ""}, "stands in no layer"),
        ({"data.strange.planted": ""}, "stands in no layer"),
    ],
)
def test_a_planted_import_is_found(planted, complaint):
    found = complaints_about(planted)
    assert any(complaint in one for one in found), found


def test_a_package_is_seen_at_a_glance():
    """At most 14 modules side by side, faces apart; a command is a file, so that their folder may have more."""
    crowded = {}
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        count = sum(1 for path in folder.glob("*.py") if path.stem != "__init__")
        if count > MAX_MODULES and folder != PACKAGE / "cli" / "commands":
            crowded[str(folder.relative_to(PACKAGE))] = count
    assert not crowded


def test_files_are_short_and_named_for_what_they_hold():
    long = {
        str(p.relative_to(PACKAGE)): n
        for p in PACKAGE.rglob("*.py")
        if (n := len(p.read_text().splitlines())) > MAX_LINES
    }
    assert not long
    assert not {path.stem for path in PACKAGE.rglob("*.py")} & {"utils", "helpers", "common", "misc"}


def test_arguments_that_travel_together_are_one_object():
    """No function takes more arguments than a reader keeps apart; a dataclass's fields are no such list."""
    crowded = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
                if count > MAX_ARGUMENTS:
                    crowded[f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"] = count
    assert not crowded


def test_lightning_is_imported_under_one_name():
    assert [str(path) for path in PACKAGE.rglob("*.py") if "pytorch_lightning" in path.read_text()] == []
