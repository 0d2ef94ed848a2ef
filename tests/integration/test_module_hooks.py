"""Hooks of `VirtueModule` that its subclasses override: none loses what the base class does in them."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from virtue_pl.engine.module import VirtueModule

SOURCE = Path(__file__).parents[2] / "src/virtue_pl"
HOOKS = {
    name
    for name, value in vars(VirtueModule).items()
    if inspect.isfunction(value) and (name.startswith("on_") or name in ("setup", "teardown", "backward"))
}


def test_every_override_of_a_hook_calls_the_base_class() -> None:
    assert "on_save_checkpoint" in HOOKS
    wrong = []
    for path in sorted((SOURCE / "models").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name in HOOKS:
                    calls = {ast.unparse(call.func) for call in ast.walk(method) if isinstance(call, ast.Call)}
                    if f"super().{method.name}" not in calls:
                        wrong.append(f"{path.name}: {node.name}.{method.name}")
    assert wrong == []
