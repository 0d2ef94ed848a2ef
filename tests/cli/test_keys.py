"""Keys of a file and of the environment."""

from __future__ import annotations

import pytest

from virtue_pl.apps.server.options import KEY_VARIABLE
from virtue_pl.cli.keys import read_key_file, read_keys
from virtue_pl.types import VirtueError

KEY = "0123456789abcdef"


def test_keys_of_a_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n{KEY}\n\n {KEY[::-1]} \n")
    monkeypatch.setenv(KEY_VARIABLE, "x" * 20)
    assert read_keys(file) == ("x" * 20, KEY, KEY[::-1])
    assert read_key_file(file) == [KEY, KEY[::-1]]
    monkeypatch.delenv(KEY_VARIABLE)
    assert read_keys(None) == ()
    file.write_text("# nothing\n")
    with pytest.raises(VirtueError, match="holds no key, expected one a line"):
        read_keys(file)
    with pytest.raises(VirtueError, match="cannot be read"):
        read_keys(tmp_path / "missing")
