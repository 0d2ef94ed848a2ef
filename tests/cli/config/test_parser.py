"""Values that nested options take on the command line as they do in YAML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from virtue_pl.cli.config.parser import as_yaml


@pytest.mark.parametrize("null", ["null", "~", "Null"])
@pytest.mark.parametrize(
    "option",
    [
        "model.init_args.segmentation",
        "model.init_args.encoder.init_args.weights",
        "model.init_args.encoder.init_args.optimization",
        "model.encoder.weights",
    ],
)
def test_null_is_null_at_every_depth(build: Callable[..., Any], option: str, null: str) -> None:
    found = build(f"--{option}", null).config
    names = option.replace("model.encoder.", "model.init_args.encoder.init_args.").split(".")
    for name in names:
        found = found[name]
    assert found is None


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--a=None", "--a=null"),
        ("--a={'b': None, 'c': [1, None]}", '--a={"b": null, "c": [1, null]}'),
        ("--a=[None, None]", "--a=[null, null]"),
        ("--a=NoneOfThem", "--a=NoneOfThem"),
        ("--a={b: None}", "--a={b: None}"),
        ("--a", "--a"),
        ("None", "None"),
        ("--a='None'", "--a='None'"),
    ],
)
def test_words_that_python_wrote_are_yaml_again(word: str, expected: str) -> None:
    assert as_yaml(word) == expected
