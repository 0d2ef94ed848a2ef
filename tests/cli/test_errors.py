"""Every way to type a config wrong gives one line that names the key and the closest name there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtue_pl.cli.errors import one_line
from virtue_pl.cli.main import main


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("trainer:\n", "trainr:\n", "unknown key 'trainr.default_root_dir'; did you mean 'trainer.default_root_dir'?"),
        ("logger: false", "loger: false", "unknown key 'trainer.loger'; did you mean 'trainer.logger'?"),
        ("scales: {", "scale: {", "model: fixtures.cli_dummies.Root has no argument 'scale'; did you mean 'scales'?"),
        (
            "fixtures.cli_dummies.Root",
            "fixtures.cli_dummies.Rot",
            "model: module fixtures.cli_dummies has no 'Rot'; did you mean 'Root'?",
        ),
        (
            "fixtures.cli_dummies.Root",
            "cli_dumies.Root",
            "model: cli_dumies.Root: there is no module 'cli_dumies'",
        ),
        ("lr: 0.1", "lr: fast", "model.optimization.lr: expected float, found 'fast'"),
        ("{box: 1.0}", "{box: wide}", "model.scales: expected float or null, found 'wide'"),
        ("rows: 16", "rows: [1]", "data.rows: expected int, found '[1]'"),
        (
            "parts/connector.yaml",
            "parts/nope.yaml",
            "model.connector: 'parts/nope.yaml' is neither a file that can be read nor the name of a class",
        ),
        ("shared: {", "shared: {]", "not YAML: "),
        ("    connector: parts/connector.yaml\n", "", "model: fixtures.cli_dummies.Root needs connector"),
        ("shared: {width", "shared: {wdth", "shared.wdth: nothing reads it; did you mean 'width'?"),
        ("seed_everything: 1", "seed_everything: one", "seed_everything: expected bool or int, found 'one'"),
        (
            "dirpath:",
            "dirpaht:",
            (
                "trainer.callbacks: lightning.pytorch.callbacks.ModelCheckpoint has no argument 'dirpaht'; did you mean"
                " 'dirpath'?"
            ),
        ),
        ("{box: 1.0}", "{box: -1.0}", "scales are {'box': -1.0}, expected none below 0"),
        ("accelerator: cpu", "accelerator: quantum", "trainer: You selected an invalid accelerator name"),
    ],
)
def test_a_wrong_config_is_one_line(config_file, capsys, old, new, told):
    text = config_file.read_text()
    assert old in text
    config_file.write_text(text.replace(old, new))
    assert main(["fit", "--config", str(config_file)]) in (1, 2)
    captured = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in captured


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "width:",
            "wdth:",
            "model.encoder: fixtures.cli_dummies.Encoder has no argument 'wdth'; did you mean 'width'?",
        ),
        ("'${shared.width}'", "wide", "model.encoder.width: expected int, found 'wide'"),
    ],
)
def test_a_mistake_in_a_part_names_its_key(config_file, capsys, old, new, told):
    part = config_file.parent / "parts" / "encoder.yaml"
    part.write_text(part.read_text().replace(old, new))
    assert main(["fit", "--config", str(config_file)]) == 2
    assert capsys.readouterr().err == f"virtue-pl: {config_file}: {told}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--trainer.max_epoch=3"], "unknown option '--trainer.max_epoch'; did you mean '--trainer.max_epochs'?"),
        (["--trainer.max_epochs=three"], "trainer.max_epochs: expected int or null, found 'three'"),
        (
            ["--model.init_args.encoder.wdth", "3"],
            "model.encoder: fixtures.cli_dummies.Encoder has no argument 'wdth'; did you mean 'width'?",
        ),
        (["--data.row", "3"], "data: fixtures.cli_dummies.Data has no argument 'row'; did you mean 'rows'?"),
        (
            ["--model.init_args.connector", "Jiont"],
            "model.connector: 'Jiont' is neither a file that can be read nor the name of a class that can be imported",
        ),
        (["stray"], "unexpected 'stray'; an option starts with --"),
        (["--config", "nope.yaml"], "nope.yaml: config: no such file"),
    ],
)
def test_a_wrong_option_is_one_line(config_file, capsys, arguments, told):
    assert main(["fit", "--config", str(config_file), *arguments]) == 2
    assert capsys.readouterr().err == f"virtue-pl: {told}\n"


OLD_CLASS = "there is no class virtue_pl"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "fixtures.cli_dummies.Root",
            "virtue_pl.parts.virtue.Virtue",
            f"model: {OLD_CLASS}.parts.virtue.Virtue: it is virtue_pl.models.Virtue",
        ),
        (
            "virtue_pl.engine.Optimization",
            "virtue_pl.parts.optimization.Optimization",
            f"model.optimization: {OLD_CLASS}.parts.optimization.Optimization: it is virtue_pl.engine.Optimization",
        ),
        (
            "fixtures.cli_dummies.Data",
            "virtue_pl.data.scar_module.SCaRData",
            f"data: {OLD_CLASS}.data.scar_module.SCaRData: the closest is virtue_pl.data.SCaRDataModule",
        ),
    ],
    ids=["root class", "nested class", "close name"],
)
def test_a_class_that_moved_is_one_line_with_its_path_today(config_file, capsys, old, new, problem):
    text = config_file.read_text()
    assert old in text
    config_file.write_text(text.replace(old, new))
    assert main(["fit", "--config", str(config_file)]) == 2
    assert capsys.readouterr().err == f"virtue-pl: {config_file}: {problem}\n"


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        (
            "formatter: {class_path: virtue_pl.recipes.ReferenceRecipe}",
            f"model.formatter: {OLD_CLASS}.recipes.ReferenceRecipe: expected one of"
            " virtue_pl.preprocessing.CropFormatter, virtue_pl.preprocessing.MarkerFormatter,"
            " virtue_pl.preprocessing.PublishedFormatter, virtue_pl.preprocessing.VirtueFormatter",
        ),
        (
            "recipe: {class_path: virtue_pl.preprocessing.VirtueFormatter}",
            "model: virtue_pl.models.Virtue has no argument 'recipe', expected some of prompt_encoder, segmentation,"
            " connector, fusion, loss, formatter, ",
        ),
    ],
    ids=["renamed class", "renamed argument"],
)
def test_a_renamed_class_or_argument_is_one_line_with_what_fits(tmp_path, capsys, argument, problem):
    layer = tmp_path / "layer.yaml"
    layer.write_text(f"model: {{init_args: {{{argument}}}}}")
    main_config = Path(__file__).parents[2] / "configs" / "virtue_mini.yaml"
    assert main(["fit", "--config", str(main_config), "--config", str(layer)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"virtue-pl: {layer}: {problem}")


def test_no_config_at_all(capsys):
    assert main(["fit"]) == 2
    assert capsys.readouterr().err == "virtue-pl: the config needs model\n"


def test_what_is_of_no_known_kind_is_kept_short():
    assert one_line("something\nelse  " + "x" * 400) == "something else " + "x" * 282 + "..."
