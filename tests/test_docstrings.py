"""Docstrings stand by themselves: all that is public has one, its first line is a sentence, and its examples run.

List the complaints of some packages, the second time with those of examples that are run:

    python tests/test_docstrings.py evaluation data/io
    python tests/test_docstrings.py --examples evaluation
"""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src"
ROOT = SOURCE / "virtue_pl"
PACKAGES = sorted({path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")})

OPENERS = (
    *("As", "Of", "What", "Where", "Which", "Whether", "How", "That", "Those", "Before", "After what", "For what"),
    *("Everything that", "See", "By"),
)
"""Words that open a clause, not a sentence; `Return whether ...` says the same of a function."""

DIALECT = re.compile(
    r"\b(pictures?|pictured|told|squash(es|ed)?|recipes?|disturbances?|strangers)\b|(?-i:\barms?\b)"
    r"|(?<!`)\b(all_reduce_(max|min)|merge_features|deepstack_embeds|select_owned)\b(?![(`])",
    re.IGNORECASE,
)
"""Words of the dialect of before, and the names that stand for them now where a sentence has an adjective."""

HOOKS = {
    *("setup", "teardown", "configure_model", "configure_optimizers", "configure_callbacks"),
    *("configure_gradient_clipping", "train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"),
    *("training_step", "validation_step", "test_step", "predict_step", "write_on_epoch_end"),
    *("state_dict", "load_state_dict", "train", "compute", "update", "backward", "parse_arguments"),
    *("add_arguments_to_parser", "before_instantiate_classes", "after_instantiate_classes", "instantiate_classes"),
    *("init_parser", "instantiate_trainer"),
}
"""Methods that the classes of torch, Lightning and argparse document: who overrides one need not say it again."""

EXTERNAL = "?"
"""Stands for bases that are not of this package."""

SKIP = doctest.OPTIONFLAGS_BY_NAME["SKIP"]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

EXAMPLE = "Example:\n        >>> A()"


class Documented(NamedTuple):
    """A module, class, function, method or property, and its docstring; "" where it has none."""

    name: str
    line: int
    docstring: str
    is_class: bool


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def class_index() -> Mapping[str, ast.ClassDef]:
    """Return every class of the package by its name."""
    found = (node for path in sorted(ROOT.rglob("*.py")) for node in ast.walk(parse(path)))
    return {node.name: node for node in found if isinstance(node, ast.ClassDef)}


def ancestors(node: ast.ClassDef) -> Iterator[ast.ClassDef | str]:
    """Yield all bases of a class, also of its bases; `EXTERNAL` for one of another library."""
    for base in node.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base).rpartition(".")[2]
        found = class_index().get(name)
        if found is None or found is node:
            yield EXTERNAL if name not in ("Protocol", "NamedTuple", "ABC", "Generic") else name
        else:
            yield found
            yield from ancestors(found)


def overrides_documented(node: ast.ClassDef, method: str) -> bool:
    """Return whether a base of this package, or a hook of another library, documents the method."""
    for base in ancestors(node):
        if base == EXTERNAL and (method in HOOKS or method.startswith("on_")):
            return True
        if isinstance(base, ast.ClassDef):
            for one in base.body:
                if isinstance(one, ast.FunctionDef) and one.name == method and ast.get_docstring(one):
                    return True
    return False


def is_exempt(node: ast.FunctionDef | ast.AsyncFunctionDef, owner: ast.ClassDef | None) -> bool:
    """Return whether a function needs no docstring: a private one, an overload, a setter, an override."""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    if node.name.startswith("_") or decorators & {"overload", "setter", "deleter"}:
        return True
    return owner is not None and overrides_documented(owner, node.name)


def documented(tree: ast.Module) -> Iterator[Documented]:
    """Yield what of a module must have a docstring, and what has one all the same."""
    yield Documented("module", 1, ast.get_docstring(tree) or "", False)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from functions([node], None)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield Documented(node.name, node.lineno, ast.get_docstring(node) or "", True)
            yield from functions(node.body, node)


def functions(body: list[ast.stmt], owner: ast.ClassDef | None) -> Iterator[Documented]:
    """Yield public functions, or an owner's methods and properties; exempt ones only if they have a docstring."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found = ast.get_docstring(node) or ""
            private = node.name.startswith("_") and not node.name.endswith("__")
            if not private and (found or not is_exempt(node, owner)):
                name = f"{owner.name}.{node.name}" if owner else node.name
                yield Documented(name, node.lineno, found, False)


def needs_example(name: str) -> bool:
    """Return whether a class must have an example: any but errors, and enumerations, whose members are theirs."""
    node = class_index().get(name)
    bases = [] if node is None else [ast.unparse(base).rpartition(".")[2] for base in node.bases]
    names = [*bases, *(base.name for base in (ancestors(node) if node else ()) if isinstance(base, ast.ClassDef))]
    return not any(base.endswith(("Enum", "Error", "Exception", "Flag")) for base in [*names, name])


def complaints_about(one: Documented) -> Iterator[str]:
    """Yield what is wrong with a docstring, in a few words each."""
    if not one.docstring:
        yield "no docstring"
        return
    first = one.docstring.splitlines()[0].strip()
    if opener := next((word for word in OPENERS if first.startswith(f"{word} ")), None):
        yield f"opens with {opener!r}, expected a verb or a noun: {first}"
    if not first.endswith("."):
        yield f"the first line is no sentence that ends in it: {first}"
    if found := DIALECT.search(first):
        yield f"{found[0]!r} is a word of the dialect: {first}"
    if one.is_class and needs_example(one.name) and not re.search(r"^ *Example:\n(.*\n)*? *>>> ", one.docstring, re.M):
        yield "no `Example:` with a line that begins with >>>"


def complaints_in(path: Path) -> list[str]:
    """Return a sentence for each complaint about a file's docstrings."""
    where = path.relative_to(SOURCE)
    return [
        f"{where}:{one.line}: {one.name}: {complaint}"
        for one in documented(parse(path))
        for complaint in complaints_about(one)
    ]


def files_of(package: str) -> list[Path]:
    """Return the modules of a package, or of one module beside the packages."""
    path = ROOT / package
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def examples_in(path: Path) -> list[doctest.DocTest]:
    """Return the examples of a file that can run; a docstring whose first line is marked `+SKIP` needs a model.

    A module of which none can run is not imported.
    """
    parser = doctest.DocTestParser()
    where = str(path.relative_to(SOURCE))
    tests = [
        parser.get_doctest(one.docstring, {}, one.name, where, one.line - 1)
        for one in documented(parse(path))
        if ">>>" in one.docstring
    ]
    return [test for test in tests if test.examples and not test.examples[0].options.get(SKIP)]


def failing_examples(path: Path) -> list[str]:
    """Run a file's examples in the names of its module, and return the reports of those that fail."""
    tests = examples_in(path)
    if not tests:
        return []
    parts = path.relative_to(SOURCE).with_suffix("").parts
    module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    reports: list[str] = []
    for test in tests:
        test.globs = dict(vars(module))
        doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(test, out=reports.append)
    return reports


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_stand_by_themselves(package):
    assert [one for path in files_of(package) for one in complaints_in(path)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_examples_run(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "".join(one for path in files_of(package) for one in failing_examples(path)) == ""


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("def f(): ...", "f: no docstring"),
        ("class A: ...", "A: no docstring"),
        (
            f'class A:\n    """A part.\n\n    {EXAMPLE}\n    """\n    @property\n    def b(self): ...',
            "A.b: no docstring",
        ),
        ('def f():\n    """As any."""', "f: opens with 'As'"),
        ('def f():\n    """Whether it is."""', "f: opens with 'Whether'"),
        ('def f():\n    """Return all\n    rows.\n    """', "f: the first line"),
        ('def f():\n    """Return the picture."""', "f: 'picture'"),
        ('class A:\n    """A part."""', "A: no `Example:`"),
        ('class A:\n    """A part.\n\n    Example:\n        A()\n    """', "A: no `Example:`"),
    ],
)
def test_a_docstring_that_does_not_stand_is_found(code, complaint):
    tree = ast.parse(f'"""A module."""\n{code}')
    found = [f"{one.name}: {about}" for one in documented(tree) for about in complaints_about(one)]
    assert len(found) == 1 and found[0].startswith(complaint)


@pytest.mark.parametrize(
    "code",
    [
        "def _private(): ...",
        "class Callback(LightningCallback):\n    def on_fit_start(self): ...\n    def setup(self): ...",
        "class A:\n    def __len__(self): ...",
    ],
)
def test_what_others_document_may_have_no_docstring(code):
    found = [one.name for one in documented(ast.parse(f'"""A module."""\n{code}')) if not one.docstring]
    assert [name for name in found if "." in name or name == "_private"] == []


def test_a_wrong_example_is_found():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "planted", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1


if __name__ == "__main__":
    import sys
    import tempfile

    packages = [argument.removeprefix("src/virtue_pl/").rstrip("/") for argument in sys.argv[1:]]
    run_examples = "--examples" in packages
    total = 0
    os.chdir(tempfile.mkdtemp())
    for package in [name for name in packages if name != "--examples"] or PACKAGES:
        found = [one for path in files_of(package) for one in complaints_in(path)]
        found += [one for path in files_of(package) for one in failing_examples(path)] if run_examples else []
        print("\n".join([*found, f"{package}: {len(found)} complaints"]))
        total += len(found)
    sys.exit(bool(total))
