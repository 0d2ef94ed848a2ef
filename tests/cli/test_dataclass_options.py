"""Options made of settings: what can be typed, what is handed on, and that no default stands in a command."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import pytest
import yaml

from virtue_pl.cli.commands import evaluate, robustness
from virtue_pl.cli.dataclass_options import add_options, field_docs, field_types, read_options
from virtue_pl.data.eval_sets.options import EvaluationDataOptions
from virtue_pl.evaluation.settings import Kind, LoadingOptions, QueryFormat, RobustnessOptions

if TYPE_CHECKING:
    from never_installed import Thing

SETTINGS = (*evaluate.SETTINGS, RobustnessOptions)
REQUIRED = ["--model", "m", "--sets", "scar", "--data", "d", "--out", "o"]


@dataclass(frozen=True)
class Settings:
    """Every type that a setting may have."""

    name: str | None = None
    """of the thing"""
    length: int = 4
    """in pixels"""
    shape: Literal["round", "square"] = "round"
    """of the thing"""
    fast: bool = False
    """or else slow"""
    loud: bool = True
    """or else
    silent"""
    folders: tuple[str, ...] = ()
    """to look in"""
    thing: Thing | None = None
    """which only YAML can build"""
    choice: Thing | Literal["first", "second"] | None = None
    """an object, or a name"""


def parse(*arguments: str) -> Settings:
    parser = ArgumentParser()
    add_options(parser, Settings)
    return read_options(Settings, parser.parse_args(arguments))


def test_what_is_not_typed_is_the_dataclasses_own_default() -> None:
    parser = ArgumentParser()
    add_options(parser, Settings)
    assert vars(parser.parse_args([])) == {} and parse() == Settings()


def test_every_type_is_read() -> None:
    arguments = ["--name", "n", "--length", "9", "--shape", "square", "--fast", "--no-loud", "--choice", "second"]
    found = parse(*arguments, "--folders", "a", "b", "--folders", "c")
    assert found == Settings("n", 9, "square", True, False, ("a", "b", "c"), None, "second")


@pytest.mark.parametrize(
    "arguments", [["--thing", "x"], ["--shape", "oval"], ["--length", "wide"], ["--choice", "third"]]
)
def test_what_cannot_be_typed_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(*arguments)
    assert arguments[0] in capsys.readouterr().err


def test_help_is_the_docstring_under_the_field_with_its_default() -> None:
    assert field_docs(Settings)["loud"] == "or else silent"
    parser = ArgumentParser()
    add_options(parser, Settings)
    text = " ".join(parser.format_help().split())
    assert "in pixels (default 4)" in text and "of the thing (default round)" in text and "to look in" in text


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_setting_of_an_evaluation_has_its_docstring(settings: type) -> None:
    assert list(field_docs(settings)) == [field.name for field in fields(settings)]


def test_no_two_settings_of_a_command_have_one_name() -> None:
    for command in (evaluate.SETTINGS, (RobustnessOptions, LoadingOptions)):
        names = [field.name for settings in command for field in fields(settings)]
        assert len(set(names)) == len(names)


def test_the_command_has_an_option_for_every_setting_but_objects_and_repeats_no_default() -> None:
    arguments = evaluate._parser().parse_args(REQUIRED)
    assert vars(arguments).keys() == {"model", "sets", "data", "out", "max_pixels"}
    assert all(read_options(settings, arguments) == settings() for settings in evaluate.SETTINGS)
    objects = [name for settings in evaluate.SETTINGS for name, types in field_types(settings).items() if not types]
    assert objects == ["image_transform"]


def test_documented_options_are_read() -> None:
    options = ["--limit", "3", "--images", "a", "--images", "b", "--mode", "point", "--allow-missing", "--cost"]
    arguments = evaluate._parser().parse_args([*REQUIRED, *options, "--robustness", "5", "--allow-classes", "my."])
    assert read_options(EvaluationDataOptions, arguments) == EvaluationDataOptions(
        limit=3, images=("a", "b"), allow_missing=True
    )
    assert read_options(QueryFormat, arguments) == QueryFormat(mode="point")
    assert read_options(LoadingOptions, arguments).allow_classes == ("my.",)


def test_kinds_of_robustness_are_the_perturbations_and_prompt_consistency() -> None:
    from virtue_pl.evaluation.probes.perturbations import PERTURBATIONS

    assert get_args(Kind) == (*PERTURBATIONS, robustness.PROMPT_CONSISTENCY)


def test_the_yaml_of_an_evaluation_repeats_no_default(request: pytest.FixtureRequest) -> None:
    import inspect

    from virtue_pl.data.datamodules.evaluation import EvaluationDataModule
    from virtue_pl.evaluation.evaluator import Evaluator

    parameters = {
        name: inspect.signature(owner).parameters
        for name, owner in (("model", Evaluator), ("data", EvaluationDataModule))
    }
    configs = request.config.rootpath / "configs"
    for path in (*configs.glob("eval_*.yaml"), *(configs / "baselines").glob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        for part, given in ((part, config.get(part, {}).get("init_args", {})) for part in parameters):
            for name, value in given.items():
                default: Any = parameters[part][name].default
                nested = value.items() if isinstance(value, dict) else ()
                assert all(getattr(default, key) != item for key, item in nested), f"{path}: {name}"


@pytest.mark.parametrize("command", ["eval", "robustness", "compare", "ablations", "quickstart"])
def test_help_imports_no_torch(command: str) -> None:
    program = (
        "import sys; from virtue_pl.cli.main import main; "
        f"code = main([{command!r}, '--help']); print('torch' in sys.modules, 'lightning' in sys.modules, code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False 0" and f"usage: virtue-pl {command}" in done.stdout
