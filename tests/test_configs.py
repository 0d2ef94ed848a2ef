"""Every YAML under configs/ builds: recipes as they are, parts in their place in the main recipe.

No weights and no data are needed: data modules open nothing before `setup`, and an argument called `weights` (or `..._weights`)
may be null for random ones. A `text_model` or `vlm_model`, which also brings its tokenizer, is replaced by a tiny one of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from paper_configs import without_data
from tiny_models import save_text_model
from tiny_vlms import TINY
from virtue_pl.adapters import adapted
from virtue_pl.app.ablations import AblationPlan
from virtue_pl.app.plan import Run
from virtue_pl.app.quickstart import Plan
from virtue_pl.cli.described import DescribedCLI
from virtue_pl.cli.lightning import VirtueCLI
from virtue_pl.training.callbacks import LastCheckpoint
from virtue_pl.types import EmbeddingInput, Region, Sample

CONFIGS = Path(__file__).parents[1] / "configs"
MAIN = CONFIGS / "virtue_mini.yaml"

SLOTS = {
    "adapters": "model.init_args.fusion.init_args.adapter",
    "callbacks": "trainer.callbacks",
    "connector": "model.init_args.connector",
    "data": "data",
    "loss": "model.init_args.loss",
    "vlm": "model.init_args.fusion",
    "vlm/backbones": "model.init_args.fusion.init_args.backbone",
}
"""Folder of parts -> the option of the main recipe that takes them."""

VARIANTS = CONFIGS / "ablations"
"""Layers of the variants in ablations.yaml, which says over what they are laid."""

LAYERS = (CONFIGS / "segmentation", CONFIGS / "stages", CONFIGS / "strategies")
"""Layers over the paper's model, which is built on the meta device: segmentation models with their prompt encoders, stages of training, strategies."""

EVALUATIONS = (CONFIGS / "eval_scar.yaml", CONFIGS / "eval_mmeb.yaml")
"""Configs that only test, and the folder of layers over them: they are run in tests/cli/test_eval_configs.py."""
BASELINES = CONFIGS / "baselines"

PLANS = ("quickstart.yaml", "quickstart_small.yaml", "ablations.yaml")
"""Files that are no layer of a run."""


def files() -> list[Path]:
    apart = (*EVALUATIONS, *(CONFIGS / name for name in PLANS))
    return sorted(path for path in CONFIGS.rglob("*.yaml") if path not in apart and path.parent not in (VARIANTS, BASELINES))


def runs_of(plan: str) -> dict[str, Run]:
    """The runs of a plan by name."""
    if plan == "ablations.yaml":
        variants = AblationPlan.read(CONFIGS / plan).variants
        return {name: Run(tuple(variant.configs), variant.overrides) for name, variant in variants.items()}
    return dict(Plan.read(CONFIGS / plan).runs)


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def slot_of(path: Path) -> str | None:
    """The option that takes the part; None for what is a config of its own."""
    folder = path.parent.relative_to(CONFIGS).as_posix()
    if folder == "." or path.parent in LAYERS:
        return None
    assert folder in SLOTS, f"say in {Path(__file__).name} which option takes the parts in configs/{folder}"
    return SLOTS[folder]


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As wide as the tiny vision-language models: class names, which it embeds, join either's states."""
    return str(save_text_model(tmp_path_factory.mktemp("text_model"), hidden_size=64))


@pytest.fixture(scope="module")
def build(text_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., VirtueCLI]]:
    """Builds what a command line asks for, once, with random weights, in an empty folder."""
    vlm_model = cache(lambda backbone: str(TINY[backbone](tmp_path_factory.mktemp("vlm_model"))))

    class RandomWeights(VirtueCLI):
        def before_instantiate_classes(self) -> None:
            forget_weights(self.config.model, text_model, vlm_model)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        yield cache(lambda *arguments: RandomWeights("fit", [*arguments, "--trainer.accelerator", "cpu"]))


def forget_weights(config: Any, text_model: str, vlm_model: Callable[[str], str], owner: str = "") -> None:
    """owner: the class whose arguments `config` holds."""
    for name, value in list(vars(config).items()) if isinstance(config, Namespace) else ():
        if (name == "weights" or name.endswith("_weights")) and value is not None:
            config[name] = None
        elif name == "text_model":
            config[name] = text_model
        elif name == "vlm_model":
            assert owner in TINY, f"say in tiny_vlms.py how a tiny model for {owner} is made"
            config[name] = vlm_model(owner)
        else:
            forget_weights(value, text_model, vlm_model, vars(config).get("class_path", owner))


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_it_builds(build, path, tmp_path):
    slot = slot_of(path)
    if path.parent in LAYERS:
        cli = DescribedCLI("fit", ["--config", str(without_data(tmp_path)), "--config", str(path), "--trainer.accelerator", "cpu"])
        assert all(parameter.is_meta for parameter in cli.model.parameters())
    elif slot == SLOTS["adapters"]:
        cli = build("--config", str(MAIN), f"--{SLOTS['vlm']}", str(CONFIGS / "vlm" / "qwen2_vl_2b.yaml"), f"--{slot}", str(path))
    elif slot == SLOTS["data"]:  # not all of it has the hard negatives that the main recipe's loss asks for
        cli = build("--config", str(MAIN), f"--{slot}", str(path), "--model.init_args.loss.init_args.own_negatives_weight", "0")
    elif slot is not None:
        cli = build("--config", str(MAIN), f"--{slot}", str(path))
    elif "model" in yaml.safe_load(path.read_text()):
        cli = build("--config", str(path))
    else:
        cli = build("--config", str(MAIN), "--config", str(path))
    assert sum(parameter.numel() for parameter in cli.model.parameters())


@pytest.mark.parametrize("path", [path for path in files() if slot_of(path) == SLOTS["vlm"] and path.stem != "minilm"], ids=name_of)
def test_a_vlm_is_swapped_under_adapters_by_its_yaml_alone(build, path):
    arguments = [f"--{SLOTS['vlm']}", str(path), f"--{SLOTS['adapters']}", str(CONFIGS / "adapters" / "dora.yaml")]
    backbone = build("--config", str(MAIN), *arguments).model.fusion.backbone
    inside = {id(module) for module in backbone.language_model.modules()}
    reached = [module for _, module in adapted(backbone)]
    assert len(reached) == 5 * len(backbone.language_model.layers) and all(id(module) in inside for module in reached)


@pytest.mark.parametrize("path", [path for path in files() if path.parent == CONFIGS and "model" in yaml.safe_load(path.read_text())], ids=name_of)
def test_what_a_run_must_say(build, path):
    """A run that is stopped goes on, and can be looked at: this is stated in YAML, where everybody sees it."""
    said = yaml.safe_load(path.read_text())
    cli = build("--config", str(path))
    assert "seed_everything" in said
    assert any(callback.save_last and not callback._enable_version_counter for callback in cli.trainer.checkpoint_callbacks)
    assert any(isinstance(callback, LastCheckpoint) for callback in cli.trainer.callbacks)
    assert [type(logger).__name__ for logger in cli.trainer.loggers] == ["TensorBoardLogger"]
    assert Path(cli.trainer.log_dir).resolve() == Path(cli.config.shared["run"]).resolve()


@pytest.mark.parametrize(("plan", "name"), [(plan, name) for plan in PLANS for name in runs_of(plan)])
def test_the_runs_of_every_plan_build(build, monkeypatch, plan, name):
    monkeypatch.chdir(CONFIGS.parent)
    run = runs_of(plan)[name]
    cli = build(*run.arguments({"run": "runs/x"}), "--seed_everything=3", "--data.init_args.seed=3")
    assert cli.datamodule.seed == 3 and cli.model.preprocess is not None
    assert cli.model.optimization.parameter_groups(cli.model)


def test_every_layer_of_an_arm_is_in_the_plan_and_names_its_run():
    used = {config for run in runs_of("ablations.yaml").values() for config in run.configs}
    assert {f"configs/ablations/{path.name}" for path in VARIANTS.glob("*.yaml")} <= used
    assert all(yaml.safe_load(path.read_text())["shared"]["run"] == f"runs/{path.stem}" for path in VARIANTS.glob("*.yaml"))


def test_the_rows_of_the_ablations_are_told_apart():
    plan = AblationPlan.read(CONFIGS / "ablations.yaml")
    rows = [row for variant in plan.variants.values() for row in variant.rows.values()]
    assert len(set(rows)) == len(rows)
    assert {*plan.segment_tokens, *(variant.reference for variant in plan.variants.values())} <= set(rows) and set(plan.learning_curves) <= plan.variants.keys()


@pytest.mark.parametrize(
    ("line", "part", "expected"),
    [
        ("--shared.trunk=test_resnet", "segmentation.backbone.trunk.network", "FeatureListNet"),
        ("--model.init_args.fusion.init_args.backbone.init_args.vision_model=test_convnext", "fusion.backbone.vision.network", "FeatureListNet"),
        (f"--model.init_args.connector={CONFIGS / 'connector' / 'convolution.yaml'}", "connector", "ConvolutionConnector"),
        (f"--model.init_args.loss={CONFIGS / 'loss' / 'sigmoid.yaml'}", "loss", "SigmoidLoss"),
    ],
)
def test_a_part_is_swapped_by_one_line(build, line, part, expected):
    """The swapped model still gives unit embeddings of a prompted picture, and a loss with gradients."""
    model = build("--config", str(MAIN), line).model
    assert type(model.get_submodule(part)).__name__ == expected
    item = EmbeddingInput("find it", (torch.zeros(3, 256, 256, dtype=torch.uint8),), image_keys=("a",))
    sample = Sample("s", "t", item, EmbeddingInput("a red fox"), (EmbeddingInput("a blue fox"),), Region(torch.tensor([0.1, 0.1, 0.5, 0.5])))
    model.train_modes = {"box": 1.0}
    output = model.loss(model.embed_pairs(model.preprocess.train([sample, replace(sample, key="other", target=EmbeddingInput("a cup"))])))
    output.loss.backward()
    assert output.loss.isfinite() and all(parameter.grad is not None for parameter in model.connector.parameters() if parameter.requires_grad)
