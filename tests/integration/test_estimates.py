"""`virtue-pl estimate` of every YAML in configs/, by the commands at its top: numbers, or a line that says why not.

No weights, hub or data are there, and every network has two layers or so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from fixtures.pages import ROOT
from fixtures.tiny_models import VISION_MODEL, save_text_model
from fixtures.tiny_release import published
from virtue_pl.cli.main import main
from virtue_pl.cli.run.estimate import EstimateCLI

CONFIGS = ROOT / "configs"
COMMAND = re.compile(r"lightning (?:fit|test|predict)((?: --[\w.]+ [^\s-]\S*)+)")
QUICKSTART = "runs/quickstart/virtue/checkpoints/last.ckpt"
MINI = ("--config", "configs/virtue_mini.yaml")
REFUSED = {
    "contrastive_loss.yaml": "InfoNCELoss learns from stored embeddings, expected a model that encodes images",
    "eval_*.yaml": "Evaluator has no training step, expected the config of a training",
    "overlays/baselines/*.yaml": "Evaluator has no training step, expected the config of a training",
}
"""Configs that are estimated for no step, and what is said of them."""
SMALL: dict[str, Any] = {
    "blocks": [1, 1, 2, 1],
    "global_attention": [3],
    "depth": 4,
    "frozen_layers": 1,
    "trunk": VISION_MODEL,
    "dims": [32, 8],
}
"""Options of networks, and their values of a few blocks."""

Estimate = Callable[..., dict[str, Any]]


def commands_of(path: Path) -> list[list[str]]:
    """The options of each command at the top of a file that names the file."""
    name = str(path.relative_to(ROOT))
    header = re.match(r"(#.*\n)*", path.read_text())[0].replace(" \\\n#  ", "")
    found = [match[1].split() for match in COMMAND.finditer(header) if name in match[1].split()]
    return found or [["--config", name]]


def every_command() -> list[Any]:
    """Every command but those of plans; those of a layer over a config are run by `make test-matrix`."""
    return [
        pytest.param(path, command, id=" ".join(command), marks=() if path.parent == CONFIGS else (pytest.mark.matrix,))
        for path in sorted(CONFIGS.rglob("*.yaml"))
        if path.parent.name != "studies"
        for command in commands_of(path)
    ]


def shrink(config: Any, text_model: str) -> None:
    """Leave few layers of every network that a config names."""
    for name, value in list(vars(config).items()) if isinstance(config, Namespace) else ():
        if name == "text_model":
            config[name] = text_model
        elif name == "vlm_sizes" and value is not None:
            config[name] = {key: fewer_layers(part) for key, part in value.items()}
        elif name in SMALL and value is not None:
            config[name] = SMALL[name]
        else:
            shrink(value, text_model)


def fewer_layers(sizes: Any) -> Any:
    """A language model's or a vision tower's sizes with two layers, all of which read what some of them did."""
    if not isinstance(sizes, dict):
        return sizes
    found = dict(sizes)
    found.update({name: 2 for name in ("num_hidden_layers", "depth") if name in sizes})
    found.update({name: [1] for name in ("fullatt_block_indexes", "deepstack_visual_indexes") if name in sizes})
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A text model, and a release to fine-tune."""
    folder = tmp_path_factory.mktemp("models")
    return {"text": str(save_text_model(folder / "text")), "FOLDER": str(published(folder / "release/model"))}


@pytest.fixture
def small(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates of small networks, from the repository's folder."""
    before = EstimateCLI.before_instantiate_classes

    def before_instantiate_classes(self: EstimateCLI) -> None:
        shrink(self.config.model, models["text"])
        before(self)

    monkeypatch.setattr(EstimateCLI, "before_instantiate_classes", before_instantiate_classes)
    monkeypatch.chdir(ROOT)


@pytest.fixture
def estimate(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Estimate:
    """The numbers of a command that gives some."""

    def run(*options: str) -> dict[str, Any]:
        target = tmp_path / "estimate.json"
        code = main(["estimate", *options, "--json", str(target)])
        assert code == 0, capsys.readouterr().err
        report: dict[str, Any] = json.loads(target.read_text())
        return report

    return run


def with_tiny_models(command: list[str], models: dict[str, str]) -> list[str]:
    """Return a command's options with what there is in place of what a reader has; a checkpoint's are no fit's."""
    names = {"CONFIG": "configs/virtue_2b.yaml", "FOLDER": models["FOLDER"], QUICKSTART: models["FOLDER"]}
    pairs = zip(command[::2], command[1::2], strict=True)
    return [part for name, value in pairs if name != "--ckpt_path" for part in (name, names.get(value, value))]


@pytest.mark.parametrize(("path", "command"), every_command())
def test_an_estimate_of_a_config_gives_numbers_or_says_why_not(
    path: Path,
    command: list[str],
    models: dict[str, str],
    small: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "estimate.json"
    code = main(["estimate", *with_tiny_models(command, models), "--json", str(target)])
    printed = capsys.readouterr()
    reasons = [reason for name, reason in REFUSED.items() if path.relative_to(CONFIGS).match(name)]
    if reasons:
        assert code != 0 and not printed.out and printed.err.count("\n") == 1 and reasons[0] in printed.err
        return
    assert code == 0, printed.err
    report = json.loads(target.read_text())
    assert report["memory"]["total"] > report["memory"]["weights"] > 0 and report["memory"]["activations"] > 0
    assert report["flops"]["backward"] > 0 and report["seconds_a_step"] > 0 and report["largest_batch"] > 0
    assert report["parameters"]["all"]["trained"] > 0


FEATURES = ("--data.init_args.features", "features")


@pytest.mark.parametrize(
    "config", ["configs/virtue_mini.yaml", "configs/segmenter.yaml", "configs/no_segmentation.yaml"]
)
def test_stored_features_are_read_and_not_computed(config: str, estimate: Estimate) -> None:
    """Their networks' operations are gone, and the batch holds numbers of 16 bits in place of pixels."""
    pixels, stored = estimate("--config", config), estimate("--config", config, *FEATURES)
    assert not pixels["stored_features"] and stored["stored_features"]
    assert stored["flops"]["total"] < pixels["flops"]["total"] and stored["flops"]["frozen"] < pixels["flops"]["frozen"]
    assert stored["memory"]["batch"] > 0 and stored["memory"]["batch"] != pixels["memory"]["batch"]
    assert stored["parameters"] == pixels["parameters"]


def test_a_mixture_reads_features_where_all_its_parts_do(estimate: Estimate) -> None:
    mixture = (*MINI, "--data", "configs/data/region_search.yaml")
    one = "--data.init_args.parts.scar_mini.init_args.features"
    assert estimate(*mixture, *FEATURES)["stored_features"]
    assert not estimate(*mixture, one, "features")["stored_features"]


def test_the_rows_do_not_depend_on_what_a_seed_draws(estimate: Estimate) -> None:
    """Each row is pointed at in the mode that is drawn most often."""
    first, second = (estimate(*MINI, "--seed_everything", seed) for seed in ("0", "1"))
    assert first == second


def test_a_chunk_of_automatic_size_is_the_largest_within_its_share(estimate: Estimate) -> None:
    cache = "--model.init_args.gradient_cache"
    chunks = (f"{cache}.class_path", "virtue_pl.engine.GradientCache", f"{cache}.init_args.chunk_size", "auto")
    auto = ("--shared.batch_size", "4096", *chunks)
    report = estimate(*MINI, *auto, "--device", "l4")
    assert 1 <= report["chunk_size"] <= report["largest_chunk"] <= 4096
    whole = estimate(*MINI, *auto[2:], "--shared.batch_size", "4", "--device", "b200")
    assert whole["chunk_size"] is None


def test_a_config_of_which_fit_says_what_is_wrong_has_no_estimate(
    small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "estimate",
                *MINI,
                "--model.init_args.alignment_steps",
                "3",
                "--model.init_args.connector",
                "configs/connector/convolution.yaml",
            ]
        )
        == 1
    )
    assert "alignment_steps is 3, but the connector" in capsys.readouterr().err
