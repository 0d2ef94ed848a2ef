"""A face whose package is not installed says which extra installs it, and the others work without it."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from virtue_pl.types import VirtueError

EXTRAS = {
    "sentence_transformers": ("sentence_transformers", "sentence-transformers"),
    "langchain": ("langchain_core", "langchain"),
    "lancedb": ("lancedb", "search"),
    "mteb": ("mteb", "mteb"),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_package_is_one_line(name, monkeypatch):
    package, extra = EXTRAS[name]
    for module in [one for one in sys.modules if one.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"virtue_pl.integrations.{name}", raising=False)
    with pytest.raises(
        VirtueError, match=rf"which is not installed \(.*\): pip install 'virtue-pl\[{extra}\]'"
    ) as caught:
        importlib.import_module(f"virtue_pl.integrations.{name}")
    assert "\n" not in str(caught.value)


def test_no_library_is_imported_before_its_face_is_asked_for():
    libraries = "{'mteb', 'lancedb', 'langchain_core', 'sentence_transformers', 'torch'}"
    code = f"import virtue_pl.integrations, sys; print(sorted({libraries} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
