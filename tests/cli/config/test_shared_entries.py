"""Every entry of `shared` is read by somebody, or refused with the closest name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from virtue_pl.cli.config.shared_entries import SharedEntries
from virtue_pl.cli.errors import UsageError
from virtue_pl.cli.main import main


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize("command", ["fit", "check", "test"])
def test_an_entry_that_nobody_reads_is_refused(
    config_file: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, "--config", str(config_file), "--shared.widht", "8"]) == 2
    assert said(capsys) == "virtue-pl: shared.widht: nothing reads it; did you mean 'width'?"
    assert main([command, "--config", str(config_file), "--shared.zzz", "8", "--print_config"]) == 2
    assert said(capsys) == "virtue-pl: shared.zzz: nothing reads it, expected one of run, width"


def test_in_a_layer_too(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text("shared: {widht: 8}")
    assert main(["fit", "--config", str(config_file), "--config", str(layer)]) == 2
    assert "shared.widht: nothing reads it; did you mean 'width'?" in said(capsys)


def test_what_only_a_replaced_part_read_may_stay(config_file: Path, tmp_path: Path, build: Any) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text("shared: {height: 8, width: 5}\ndata: {init_args: {rows: '${shared.height}'}}")
    assert build("--config", str(layer), "--data.rows", "16").datamodule.rows == 16


def test_entries_with_a_default_or_inside_another_are_read(config_file: Path, tmp_path: Path, build: Any) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text(
        "shared: {size: small, sizes: {small: 16, large: 32}}\n"
        "data: {init_args: {rows: '${shared.sizes.${shared.size}}', batch_size: '${oc.select:shared.batch,8}'}}"
    )
    assert build("--config", str(layer)).datamodule.batch_size == 8
    cli = build("--config", str(layer), "--shared.size", "large", "--shared.batch", "2")
    assert (cli.datamodule.rows, cli.datamodule.batch_size) == (32, 2)


def test_a_runs_own_config_has_its_values_filled_in(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(config_file)]) == 0
    saved = str(tmp_path / "run" / "config.yaml")
    assert main(["fit", "--config", saved, "--print_config"]) == 0
    capsys.readouterr()
    assert main(["fit", "--config", saved, "--shared.width", "8"]) == 2
    assert "shared.width: the config is that of a run, in which the values are filled in" in said(capsys)
    assert main(["fit", "--config", saved, "--shared.widht", "8"]) == 2
    assert "shared.widht: nothing reads it; did you mean 'width'?" in said(capsys)


def test_nothing_is_read_without_files() -> None:
    with pytest.raises(UsageError, match=r"shared\.a: nothing reads it, expected one of none"):
        SharedEntries().check({"a": 1})
