"""A hook of MkDocs: pages of the repository outside of docs/, and the reference of every package's public names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "virtue_pl"
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "data/README.md": "data-folder.md",
    "tests/golden/README.md": "golden.md",
}
"""Pages that stand elsewhere in the repository, and their names in the site."""
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add a page of the reference for each package with public names."""
    assert config.nav is not None
    section = next(entry for entry in config.nav if "Reference" in entry)
    section["Reference"] = [{name: f"reference/{name}.md"} for name in public_names()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not stand in docs/."""
    for path, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    for package, names in public_names().items():
        files.append(File.generated(config, f"reference/{package}.md", content=reference_page(package, names)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page whose links lead to the site's pages, wherever in the repository they stand."""
    outside = {name: path for path, name in OUTSIDE.items()}
    source = page.file.src_uri
    folder = (ROOT / outside[source] if source in outside else ROOT / "docs" / source).parent

    def replace(match: re.Match[str]) -> str:
        start, target, anchor = match[1], match[2], match[3] or ""
        if ":" in target:
            return match[0]
        return f"{start}{site_name(folder / target)}{anchor})"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(replace, part) for part in parts)


def site_name(path: Path) -> str:
    """Return the name in the site, from its top, of a file of the repository."""
    inside = path.resolve().relative_to(ROOT).as_posix()
    return OUTSIDE.get(inside, inside.removeprefix("docs/"))


def public_names() -> dict[str, list[str]]:
    """Return the public names of each package, as the modules that define them have them, by the package's name."""
    found = {}
    for face in sorted(SOURCE.rglob("__init__.pyi")):
        package = ".".join(("virtue_pl", *face.parent.relative_to(SOURCE).parts))
        imports = [node for node in ast.parse(face.read_text()).body if isinstance(node, ast.ImportFrom)]
        found[package] = [full_name(package, node, alias.name) for node in imports for alias in node.names]
    return {package: names for package, names in found.items() if names}


def full_name(package: str, node: ast.ImportFrom, name: str) -> str:
    """Return the dotted name of what a face imports."""
    parts = package.split(".")
    parts = parts[: len(parts) - (node.level - 1)]
    return ".".join((*parts, *(node.module or "").split("."), name)).replace("..", ".")


def reference_page(package: str, names: list[str]) -> str:
    """Return the page of a package: what its docstring says first, and each of its names."""
    docstring = ast.get_docstring(ast.parse((SOURCE.parent.joinpath(*package.split(".")) / "__init__.py").read_text()))
    entries = "\n\n".join(f"::: {name}" for name in names)
    return f"# {package}\n\n{docstring or ''}\n\n{entries}\n"
