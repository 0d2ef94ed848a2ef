"""A class that replaces another starts clean, for every option that takes a class and every way to replace it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from virtue_pl.cli.lightning import VirtueCLI

DUMMIES = "fixtures.cli_dummies"
LOGGERS = "lightning.pytorch.loggers"
OPTIONS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "data": (f"{DUMMIES}.Data", {"folder": "before", "rows": 12}, f"{DUMMIES}.OtherData", {"batch_size": 3}),
    "model.init_args.encoder": (f"{DUMMIES}.Encoder", {"width": 7}, f"{DUMMIES}.OtherEncoder", {"frozen": True}),
    "model.init_args.connector": (f"{DUMMIES}.Joint", {"kernel": 9}, f"{DUMMIES}.OtherJoint", {}),
    "model.init_args.gradient_cache": (f"{DUMMIES}.Chunked", {"chunk_size": 9}, f"{DUMMIES}.OtherChunked", {}),
    "trainer.logger": (
        f"{LOGGERS}.TensorBoardLogger",
        {"save_dir": "before", "name": "kept", "version": "1"},
        f"{LOGGERS}.CSVLogger",
        {"save_dir": "after"},
    ),
}
"""Class and arguments before, class and arguments that replace them, by option."""


class Parsed(VirtueCLI):
    """Builds nothing."""

    def instantiate_classes(self) -> None: ...

    def after_instantiate_classes(self) -> None: ...


def nested(option: str, value: Any) -> dict[str, Any]:
    for name in reversed(option.split(".")):
        value = {name: value}
    return value


def as_file(path: Path, content: Any) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def found_arguments(config_file: Path, option: str, *options: str) -> tuple[str, Mapping[str, Any]]:
    found: Any = Parsed("fit", ["--config", str(config_file), *options]).config
    for name in option.split("."):
        found = found[name]
    return found.class_path, vars(found.init_args)


@pytest.mark.parametrize("way", ["later file", "file as value", "class and arguments"])
@pytest.mark.parametrize("option", OPTIONS)
def test_nothing_of_the_replaced_class_stays(option, way, config_file, tmp_path):
    old, before, new, after = OPTIONS[option]
    first = as_file(tmp_path / "first.yaml", nested(option, {"class_path": old, "init_args": before}))
    spec = {"class_path": new, "init_args": after}
    options = {
        "later file": ["--config", as_file(tmp_path / "second.yaml", nested(option, spec))],
        "file as value": [f"--{option}", as_file(tmp_path / "value.yaml", spec)],
        "class and arguments": [f"--{option}", new, *(f"--{option}.{name}={value}" for name, value in after.items())],
    }[way]
    alone = found_arguments(config_file, option, f"--{option}", as_file(tmp_path / "alone.yaml", spec))
    path, arguments = found_arguments(config_file, option, "--config", first, *options)
    assert path == new and arguments == alone[1]
    assert not set(map(str, arguments.values())) & (set(map(str, before.values())) - {"True"})


def test_the_model_itself_starts_clean(config_file, tmp_path):
    spec = {
        "class_path": f"{DUMMIES}.OtherRoot",
        "init_args": {"encoder": {"class_path": f"{DUMMIES}.OtherEncoder"}, "connector": f"{DUMMIES}.OtherJoint"},
    }
    arguments = found_arguments(config_file, "model", "--model", as_file(tmp_path / "root.yaml", spec))[1]
    assert arguments["scales"] is None and arguments["optimization"] is None
    assert arguments["encoder"].init_args.width == 2


def test_the_same_class_keeps_what_a_later_layer_does_not_name(config_file, tmp_path):
    for path in (f"{DUMMIES}.Data", None):
        content = {"data": {**({"class_path": path} if path else {}), "init_args": {"rows": 20}}}
        options = ["--config", as_file(tmp_path / "later.yaml", content)]
        arguments = found_arguments(config_file, "data", *options)[1]
        assert (arguments["rows"], arguments["batch_size"]) == (20, 4)


def test_the_same_class_by_another_path_is_no_other_class(config_file, tmp_path):
    option = "model.init_args.optimization"
    module_path = "virtue_pl.engine.optimizer.Optimization"
    spec = {"class_path": module_path, "init_args": {"warmup_steps": 3}}
    arguments = found_arguments(config_file, option, f"--{option}", as_file(tmp_path / "same.yaml", spec))[1]
    assert (arguments["lr"], arguments["warmup_steps"]) == (0.1, 3)
