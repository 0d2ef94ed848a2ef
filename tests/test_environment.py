"""The ways to install the project agree with setup.cfg."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAIR = ("torch", "torchvision")


@pytest.fixture(scope="module")
def setup() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def requirements(setup: ConfigParser) -> dict[str, str]:
    """Name -> version specifier."""
    lines = [line for line in setup["options"]["install_requires"].splitlines() if line and not line.startswith("#")]
    return {match[1]: match[3] for line in lines if (match := re.fullmatch(r"([\w-]+)(\[[\w,]+\])?(.*)", line))}


def satisfies(version: str, specifier: str) -> bool:
    """Whether `version` lies within ">=low,<high"."""
    low, high = (tuple(map(int, bound.lstrip("><=").split("."))) for bound in specifier.split(","))
    found = tuple(map(int, version.split(".")))
    return low <= found < high


def test_conda_gives_only_python_and_pip(conda):
    names = [re.split("[=<>]", line)[0] for line in conda["dependencies"] if isinstance(line, str)]
    assert names == ["python", "pip"]


def test_conda_installs_the_pair_first_and_then_the_project(conda, setup):
    *pair, project = conda["dependencies"][-1]["pip"]
    versions = dict(line.split("==") for line in pair)
    assert tuple(versions) == PAIR
    assert all(satisfies(versions[name], requirements(setup)[name]) for name in PAIR)
    extras = re.fullmatch(r"-e \.\[(.+)\]", project)
    assert extras and set(extras[1].split(",")) <= set(setup["options.extras_require"])


def test_conda_and_setup_ask_for_the_same_python(conda, setup):
    python = next(line for line in conda["dependencies"] if isinstance(line, str) and line.startswith("python="))
    assert setup["options"]["python_requires"] == f">={python.removeprefix('python=')}"


def test_the_makefile_installs_the_same_pair(conda):
    makefile = (ROOT / "Makefile").read_text()
    assert " ".join(conda["dependencies"][-1]["pip"][:2]) in makefile


def test_both_commands_are_the_same_main(setup):
    scripts = [
        line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].split("\n") if " = " in line
    ]
    assert sorted(name for name, _ in scripts) == ["lightning", "virtue-pl"]
    assert {target for _, target in scripts} == {"virtue_pl.cli.main:main"}


@pytest.mark.parametrize("name", ["lightning", "pillow", "torch", "transformers"])
def test_what_must_be_bounded_is_bounded(setup, name):
    assert re.fullmatch(r">=[\d.]+,<[\d.]+", requirements(setup)[name])


def test_no_lightning_that_is_known_to_be_unsafe(setup):
    assert not satisfies("2.6.5", requirements(setup)["lightning"])
