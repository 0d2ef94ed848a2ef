"""Plans, as YAML: which models to train from which configs. Shared by the commands that run several of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from virtue_pl.backbones.class_names import STORED_NAMES
from virtue_pl.types import VirtueError


@dataclass(frozen=True)
class Run:
    """One run of a plan: its configs, laid over each other, and what is changed in them.

    Example:
        >>> Run(("a.yaml",), {"trainer.max_steps": 5}).arguments({"run": "runs/a"})
        ['--config', 'a.yaml', '--shared.run=runs/a', '--trainer.max_steps=5']
    """

    configs: tuple[str, ...]
    overrides: Mapping[str, Any]

    def arguments(self, shared: Mapping[str, Any]) -> list[str]:
        """Return the arguments of `fit` or `test`: configs, overrides, and the shared values that they read."""
        layers = [part for config in self.configs for part in ("--config", config)]
        read = self.shared_entries()
        chosen = {f"shared.{name}": value for name, value in shared.items() if read is None or name in read}
        settings = {**chosen, **self.overrides}
        return layers + [
            f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()
        ]

    def shared_entries(self) -> set[str] | None:
        """Return the names of the entries of `shared` that the configs state; None where they state none."""
        if not all(Path(config).is_file() for config in self.configs):
            return None
        found = (yaml.safe_load(Path(config).read_text(encoding="utf-8")) for config in self.configs)
        return {name for content in found for name in (content or {}).get("shared") or {}} or None

    def content(self) -> list[Any]:
        """Return what changes when the run must be done again: all that its configs and overrides say."""
        named = [Path(value) for value in strings(dict(self.overrides)) if is_config(value)]
        overrides = {name: None if is_config(value) else value for name, value in self.overrides.items()}
        return [*(read_whole(path) for path in (*map(Path, self.configs), *named)), overrides]


def read_run(found: Mapping[str, Any]) -> Run:
    """Return the run of a plan's entry."""
    return Run(tuple(found["configs"]), found["overrides"])


def read_plan(path: str | Path, expected: set[str], optional: Set[str] = frozenset()) -> dict[str, Any]:
    """Read the mapping in the file of a plan. Raises VirtueError unless it has the `expected` keys, and no others.

    optional: keys that it may have.
    """
    if not Path(path).is_file():
        raise VirtueError(f"plan: {path} is not there; give the file of the plan with --plan")
    found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not expected <= set(found) <= expected | optional:
        raise VirtueError(
            f"plan: {path} has {sorted(found) if isinstance(found, dict) else type(found).__name__}, expected"
            f" {sorted(expected)}"
        )
    return found


def read_whole(config: Path) -> list[Any]:
    """Return the content of a config and of every file that stands in it for a part."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    named = [config.parent / value for value in strings(content) if value.endswith(".yaml")]
    return [content, *(part for path in named if path.is_file() for part in read_whole(path))]


def is_config(value: Any) -> bool:
    """Return whether an override names a YAML file, which stands for a part."""
    return isinstance(value, str) and value.endswith(".yaml") and Path(value).is_file()


def content_of(path: str | Path) -> dict[str, str]:
    """Return checksums of a file, of the manifests in a folder of shards, or of all files in another folder.

    They are by the files' paths in the folder, which may lie anywhere. What is stored beside weights and follows from
    them (`backbones.class_names`) does not count.
    """
    root = Path(path)
    if root.is_file():
        return {"": file_hash(root)}
    files = sorted(root.rglob("manifest.json")) or sorted(
        found for found in root.rglob("*") if found.is_file() and STORED_NAMES not in found.name
    )
    return {file.relative_to(root).as_posix(): file_hash(file) for file in files}


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, which is read again only when its size or time has changed."""
    about = path.stat()
    return hash_of_version(path, about.st_size, about.st_mtime_ns)


@cache
def hash_of_version(path: Path, size: int, time_ns: int) -> str:
    """Return the SHA-256 of a file of this size and time of change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def strings(value: Any) -> Iterator[str]:
    """Return every string in nested mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from strings(item)
