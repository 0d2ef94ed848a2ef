"""An option that there is not is told with the closest one, whatever else is missing, by every command."""

from __future__ import annotations

import pytest

from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.main import COMMANDS, main

NAMES = [name for group in COMMANDS.values() for name in group]
FORMATS = ("scar", "mmeb", "pairs")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_tells_an_unknown_option_before_a_missing_one(name, capsys):
    for options in [[name, part] for part in FORMATS] if name == "shards" else [[name]]:
        assert main([*options, "--no_such_thing", "3"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "unknown option '--no_such_thing'" in last and "required" not in last


@pytest.mark.parametrize(
    ("options", "typed", "meant"),
    [
        ("eval --modle m --data d --out o", "--modle", "--model"),
        ("eval --model m --data d --out o --limt=3", "--limt", "--limit"),
        ("shards pairs --rot r --out o", "--rot", "--root"),
        ("shards pairs --root r --out o --max_left_out 1", "--max_left_out", "--max-left-out"),
        ("robustness --model m --shard s --ou o --devise cpu", "--devise", "--device"),
        ("export --outt folder last.ckpt", "--outt", "--out"),
        ("fit --confg c.yaml", "--confg", "--config"),
        ("check --confg c.yaml", "--confg", "--config"),
    ],
)
def test_the_closest_option_is_named(options, typed, meant, capsys):
    assert main(options.split()) == 2
    assert f"unknown option {typed!r}; did you mean {meant!r}?" in capsys.readouterr().err.splitlines()[-1]


def test_what_argparse_takes_is_taken():
    parser = CommandParser(prog="p")
    parser.add_argument("--level", type=float)
    parser.add_argument("options", nargs="*")
    found = parser.parse_args(["--lev", "-0.5", "a", "--", "--b"])
    assert (found.level, found.options) == (-0.5, ["a", "--b"])
    strict = CommandParser(prog="p", allow_abbrev=False)
    strict.add_argument("--level")
    assert strict.unknown_option(["--lev", "1"]) == "--lev" and strict.unknown_option(["--level=1"]) is None
