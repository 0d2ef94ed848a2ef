"""One word for one thing: names in the code, its tests and its YAMLs are the field's, and none is of the dialect of
before.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PYTHON = sorted(path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
YAMLS = sorted(path for folder in ("configs", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.yaml"))

PARTS = {
    "picture": "image",
    "pictures": "images",
    "pictured": "with images",
    "recipe": "formatter",
    "recipes": "formatters",
    "squash": "resize_to_square",
    "squashed": "resize_to_square",
    "place": "index, position, region or folder",
    "places": "indices, positions or regions",
    "arm": "variant",
    "arms": "variants",
    "neighbours": "prompt_consistency",
    "disturbance": "perturbation",
    "disturbances": "perturbations",
    "surroundings": "DirectionalContext",
    "thinned": "DropoutMask",
}
"""A part of a name, between underscores or capitals, and what stands in its stead."""

NAMES = {
    "known": "encode_frozen, or what it is",
    "Known": "FrozenEncoder",
    "known_or_encoded": "encode_missing",
    "UNKNOWN": "NO_FEATURES",
    "keep": "offload",
    "at_once": "chunk_size",
    "PlainStep": "FullBatch",
    "world": "world_size",
    "Asking": "QueryFormat",
    "words": "describe_region",
    "show": "image_transform, or what is drawn",
    "guess": "baseline",
    "WAYS": "PROMPT_VARIANTS",
    "Part": "VirtueModule",
    "finish": "load_and_freeze",
    "Release": "CheckpointSpec",
    "Movable": "TensorDataclass",
    "taken": "select_owned",
    "added": "deepstack_embeds",
    "added_places": "visual_pos_mask",
    "canvas_places": "feature_grid_size",
    "last_places": "last_token_index",
    "side": "grid_size, or a size in pixels",
    "against": "reference",
    "further_prompts": "extra_prompts",
    "reaching": "with_unused_parameters",
    "smallest": "all_reduce_min",
    "largest": "all_reduce_max",
    "either": "merge_features",
    "FoldedDora": "FusedDora",
    "Summary": "ShortcutHead",
    "ReferenceRecipe": "PublishedFormatter",
    "floors": "layers",
    "floor": "layer",
    "rooms": "packages",
    "room": "package",
    "house": "architecture",
    "strangers": "forbidden imports",
}
"""A whole name, and what stands in its stead."""

PARTICIPLES = {
    *("shown", "told", "kept", "known", "taken", "asked", "framed", "held", "drawn", "given", "found", "seen", "made"),
    *(
        "adapted",
        "padded",
        "halved",
        "tiled",
        "stretched",
        "resized",
        "renamed",
        "described",
        "replaced",
        "moved",
        "trained",
    ),
    *(
        "observed",
        "counted",
        "shortened",
        "mirrored",
        "jittered",
        "pooled",
        "prompted",
        "wanted",
        "chosen",
        "collated",
        "looked",
    ),
}
"""Words that name no function by themselves: a function is a verb, or the thing that it returns."""

MODULE_ATTRIBUTES = {
    "surroundings": "of MaskConnector: a key of its checkpoints",
    "backbone.places": "of TimmTextBackbone: the parameter's name, by which a learning rate is chosen",
    "fusion.backbone.places": "the same",
}
"""Names that a checkpoint knows: attributes of modules."""

FILE_KEYS = {"side_1": "a variant's name, a key of the study's report", "side_4": "the same"}
"""Names that a file knows: keys of manifests, reports and predictions."""

EXCEPTIONS = {**MODULE_ATTRIBUTES, **FILE_KEYS}


def split_name(name: str) -> list[str]:
    """Return a name's parts in lower case: snake_case, CamelCase and UPPER_CASE are cut."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def complaint_about(name: str, is_function: bool = False) -> str | None:
    """Return what a name should be instead; None for one that may stay."""
    bare = name.strip("_")
    if name in EXCEPTIONS:
        return None
    if bare in NAMES:
        return NAMES[bare]
    found = [PARTS[part] for part in split_name(bare) if part in PARTS]
    if found:
        return found[0]
    return "a verb" if is_function and bare in PARTICIPLES else None


def names_in_code(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Yield line, name and whether it is a function's: classes, functions, arguments, fields and constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.lineno, node.name, False
            for statement in node.body:
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    yield statement.lineno, statement.target.id, False
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name, True
            arguments = node.args
            for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
                yield argument.lineno, argument.arg, False
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id, False
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
            for value in node.args:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield node.lineno, value.value.strip("-").replace("-", "_"), False


def names_in_yaml(content: object) -> Iterator[str]:
    """Yield every key, and the last name of every class path."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield str(key)
            if key == "class_path":
                yield str(value).rpartition(".")[2]
            yield from names_in_yaml(value)
    elif isinstance(content, list):
        for value in content:
            yield from names_in_yaml(value)


def complaints_in(path: Path) -> list[str]:
    """Return a sentence for each name of the dialect that a file bears or holds."""
    where = path.relative_to(ROOT)
    found = [f"{where}: the file: {why}" for why in [complaint_about(path.stem)] if why]
    if path.suffix == ".yaml":
        names = {name for name in names_in_yaml(yaml.safe_load(path.read_text()))}
        return found + [f"{where}: {name}: {why}" for name in sorted(names) if (why := complaint_about(name))]
    for line, name, is_function in sorted(set(names_in_code(ast.parse(path.read_text())))):
        if why := complaint_about(name, is_function):
            found.append(f"{where}:{line}: {name}: {why}")
    return found


def test_names_are_the_fields():
    assert [one for path in (*PYTHON, *YAMLS) for one in complaints_in(path)] == []


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("class PictureBatch: ...", "image"),
        ("def f(picture_ids): ...", "image"),
        ("def known(): ...", "encode_frozen"),
        ("def shown(): ...", "a verb"),
        ("canvas_places = 3", "feature_grid_size"),
        ("parser.add_argument('--squash')", "resize_to_square"),
        ("class A:\n    world: int", "world_size"),
    ],
)
def test_a_name_of_the_dialect_is_found(code, complaint):
    assert any(
        complaint in (complaint_about(name, function) or "") for _, name, function in names_in_code(ast.parse(code))
    )


def test_exceptions_are_in_use_and_few():
    text = "\n".join(path.read_text() for path in (*PYTHON, *YAMLS) if path != Path(__file__))
    assert all(re.search(rf"\b{name}\b", text) for name in EXCEPTIONS)
    assert len(EXCEPTIONS) <= 12


if __name__ == "__main__":
    import sys

    for found in [
        one
        for path in (*PYTHON, *YAMLS)
        for one in complaints_in(path)
        if not sys.argv[1:] or any(a in one for a in sys.argv[1:])
    ]:
        print(found)
