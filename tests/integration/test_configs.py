"""Every YAML under configs/ builds: what runs alone as it is, a part as its option's value, a layer over a config, a
study by its runs.

`FOLDERS` says what stands in which folder; a file in any other fails. No weights and no data are needed: data modules
open nothing
before `setup`, and an argument called `weights` (or `..._weights`) may be null for random ones. A `text_model` or
`vlm_model`, which
also brings its tokenizer, is replaced by a tiny one of its kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fixtures.paper_configs import without_data
from fixtures.random_weights import forget_weights
from fixtures.tiny_models import save_text_model
from fixtures.tiny_vlms import DUAL, TINY
from virtue_pl.adapters.lora import adapter_layers
from virtue_pl.callbacks.checkpoint import LastCheckpoint
from virtue_pl.cli.described import DescribedCLI
from virtue_pl.cli.errors import UsageError
from virtue_pl.cli.lightning import VirtueCLI
from virtue_pl.pipelines.ablations import AblationPlan
from virtue_pl.pipelines.plan import Run
from virtue_pl.pipelines.quickstart import Plan
from virtue_pl.pipelines.region_search import RegionSearchPlan
from virtue_pl.types import EmbeddingInput, Region, Sample

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
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
"""Folder of parts -> the option of the main config that takes them."""

OVERLAYS = CONFIGS / "overlays"
LAYERS = (OVERLAYS, OVERLAYS / "segmentation", OVERLAYS / "stages", OVERLAYS / "strategies")
"""Layers over the paper's model, which is built on the meta device: the published recipe (it changes the data too),
segmentation models with their prompt encoders, stages of training, strategies.
"""

FEATURES = OVERLAYS / "features"
"""Layers over the main config for `predict`: what is computed once and stored."""

VARIANTS = OVERLAYS / "ablations"
"""Layers of the variants in studies/ablations.yaml, which says over what they are laid."""

EVALUATIONS = (CONFIGS / "eval_scar.yaml", CONFIGS / "eval_mmeb.yaml")
"""Configs that only test, and the folder of layers over them: tests/integration/test_eval_configs.py runs them."""
BASELINES = OVERLAYS / "baselines"

FINETUNE = CONFIGS / "finetune.yaml"
"""Config that starts from a model: tests/integration/test_finetune.py runs it."""
UNSTATED = {"own": ("--shared.val_share", "0.1")}
"""Entries of `shared` that the main config does not have, and that a part of it is given."""

STUDIES = CONFIGS / "studies"
PLANS = ("quickstart.yaml", "quickstart_small.yaml", "ablations.yaml", "region_search.yaml")
"""Plans of several runs, which are no configs of one: what `virtue-pl quickstart`, `ablations` and `search-demo` take
as `--plan`.
"""

BENCHMARKS = ROOT / "benchmarks"
"""Its YAML is a model that the benchmarks of speed build."""

FOLDERS = (CONFIGS, *(CONFIGS / folder for folder in SLOTS), *LAYERS, FEATURES, VARIANTS, BASELINES, STUDIES)
"""Every folder in which a YAML may stand."""


def every_file() -> list[Path]:
    return sorted(path for folder in (CONFIGS, BENCHMARKS) for path in folder.rglob("*.yaml"))


def files() -> list[Path]:
    """Those that are built by themselves, or over another: neither evaluations nor what only a plan names."""
    return [
        path
        for path in every_file()
        if path not in (*EVALUATIONS, FINETUNE) and path.parent not in (VARIANTS, BASELINES, STUDIES)
    ]


def runs_alone(path: Path) -> bool:
    return path.parent in (CONFIGS, BENCHMARKS)


def sizes_of(path: Path) -> list[str]:
    """The options that choose each size of the network of a layer; an empty one where it has but one."""
    shared = yaml.safe_load(path.read_text()).get("shared", {}) if path.parent in LAYERS else {}
    tables = [name for name in shared if name.endswith("_sizes")]
    return [f"--shared.{name.removesuffix('s')}={size}" for name in tables for size in shared[name]] or [""]


def builds() -> list[Any]:
    """Every file of `files`, once for each of its sizes."""
    return [pytest.param(path, size, id=f"{name_of(path)}{size}") for path in files() for size in sizes_of(path)]


def runs_of(plan: str) -> dict[str, Run]:
    """The runs of a plan by name."""
    if plan == "ablations.yaml":
        variants = AblationPlan.read(STUDIES / plan).variants
        return {name: Run(tuple(variant.configs), variant.overrides) for name, variant in variants.items()}
    if plan == "region_search.yaml":
        models = RegionSearchPlan.read(STUDIES / plan).models
        return {name: model.run for name, model in models.items() if model.run is not None}
    return dict(Plan.read(STUDIES / plan).runs)


def built_of(plan: str) -> list[str]:
    """The runs of a plan that build without another: tests of the plan's command run what starts from one."""
    return [name for name, run in runs_of(plan).items() if "shared.start" not in run.overrides]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def slot_of(path: Path) -> str | None:
    """The option that takes the part; None for what is no part."""
    return SLOTS.get(path.parent.relative_to(CONFIGS).as_posix()) if path.is_relative_to(CONFIGS) else None


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As wide as the tiny vision-language models: class names, which it embeds, join either's states."""
    return str(save_text_model(tmp_path_factory.mktemp("text_model"), hidden_size=64))


@pytest.fixture(scope="module")
def build(text_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., VirtueCLI]]:
    """Builds what a command line asks for, once, with random weights, in an empty folder."""
    vlm_model = cache(lambda backbone: str((TINY | DUAL)[backbone](tmp_path_factory.mktemp("vlm_model"))))

    class RandomWeights(VirtueCLI):
        def before_instantiate_classes(self) -> None:
            forget_weights(self.config.model, text_model, vlm_model)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        yield cache(lambda *arguments: RandomWeights("fit", [*arguments, "--trainer.accelerator", "cpu"]))


def test_every_file_stands_in_a_folder_that_says_what_it_is():
    unknown = [
        name_of(path)
        for path in CONFIGS.rglob("*")
        if path.is_file() and not (path.suffix == ".yaml" and path.parent in FOLDERS)
    ]
    assert not unknown, (
        f"say in {Path(__file__).name} what stands in these folders of configs/, and how it is built: {unknown}"
    )
    assert all(any(folder.glob("*.yaml")) for folder in FOLDERS), "a folder that is gone"
    assert {path.name for path in STUDIES.iterdir()} == set(PLANS)


@pytest.mark.parametrize("path", every_file(), ids=name_of)
def test_its_content_is_of_its_folder(path):
    content = yaml.safe_load(path.read_text())
    if path.parent == STUDIES:
        assert "model" not in content and "trainer" not in content
    elif runs_alone(path):
        assert (
            content.keys() == {"seed_everything", "shared", "model", "data", "trainer"}
            and "class_path" in content["model"]
        )
    elif slot_of(path) is None:
        assert content.keys() <= {"shared", "model", "data", "trainer"}, "a layer changes a config, it is none itself"
    else:
        assert all(
            part.keys() <= {"class_path", "init_args"} for part in (content if isinstance(content, list) else [content])
        )


@pytest.mark.parametrize("path", every_file(), ids=name_of)
def test_it_opens_with_what_it_is_and_the_command_that_uses_it(path):
    first, *others = re.match(r"(#.*\n)*", path.read_text())[0].splitlines()
    slot, name = slot_of(path), name_of(path)
    uses = {f"--config {name}"} if slot is None else {f"--{slot} {name}"}
    if path.parent == STUDIES:
        uses = {f"`virtue-pl {path.stem}`", f"--plan {name}"}
    elif path.parent == CONFIGS / "vlm" / "backbones":
        uses = {f"--model.init_args.backbone {name}"}
    assert len(first) > 2 and any(use in " ".join([first, *others]) for use in uses), (
        f"{name}: say at its top what it is, and {uses}"
    )


def test_every_config_that_is_named_is_there():
    """In YAML, code, tests, notebooks and the Makefile; a star stands for several."""
    folders = (ROOT / folder for folder in ("configs", "src", "tests", "benchmarks", "notebooks"))
    sources = [
        ROOT / "Makefile",
        *(path for folder in folders for path in folder.rglob("*.*") if path.suffix in {".yaml", ".py", ".ipynb"}),
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    named = set(re.findall(r"\b(?:configs|benchmarks)/[\w/*]+\.yaml", text))
    assert len(named) > 40 and not [name for name in named if not any(ROOT.glob(name))]


def test_the_papers_sizes_differ_in_their_language_model_alone():
    """Each is a whole config, so that it runs alone: what both say must not drift apart."""
    small, large = (yaml.safe_load((CONFIGS / f"virtue_{size}.yaml").read_text()) for size in ("2b", "7b"))
    assert {
        name for name in small["shared"] | large["shared"] if small["shared"].pop(name) != large["shared"].pop(name)
    } == {"run", "vlm_model", "vlm_sizes"}
    assert small == large


@pytest.mark.parametrize(("path", "size"), builds())
def test_it_builds(build, path, size, tmp_path):
    slot = slot_of(path)
    if path.parent in LAYERS:
        arguments = [
            "--config",
            str(
                CONFIGS / "virtue_2b.yaml" if path.parent in (OVERLAYS, OVERLAYS / "stages") else without_data(tmp_path)
            ),
            "--config",
            str(path),
            *([size] if size else []),
            "--trainer.accelerator",
            "cpu",
        ]
        cli = DescribedCLI("fit", arguments)
        assert all(parameter.is_meta for parameter in cli.model.parameters())
    elif slot == SLOTS["adapters"]:
        cli = build(
            "--config",
            str(MAIN),
            f"--{SLOTS['vlm']}",
            str(CONFIGS / "vlm" / "qwen2_vl_2b.yaml"),
            f"--{slot}",
            str(path),
        )
    elif slot == SLOTS["data"]:  # not all of it has the hard negatives that the main config's loss asks for
        without_negatives = "--model.init_args.loss.init_args.own_negatives_weight", "0"
        cli = build("--config", str(MAIN), f"--{slot}", str(path), *without_negatives, *UNSTATED.get(path.stem, ()))
    elif slot == SLOTS["connector"]:  # not each of them makes the summary that the main config first aligns
        cli = build("--config", str(MAIN), f"--{slot}", str(path), "--model.init_args.alignment_steps", "0")
    elif slot is not None:
        cli = build("--config", str(MAIN), f"--{slot}", str(path))
    elif runs_alone(path):
        cli = build("--config", str(path))
    else:
        cli = build("--config", str(MAIN), "--config", str(path))
    assert sum(parameter.numel() for parameter in cli.model.parameters())


def test_a_size_that_is_none_is_refused_by_its_name(tmp_path):
    layer = OVERLAYS / "segmentation" / "sam2.yaml"
    with pytest.raises(UsageError, match=r"sam2_sizes.*huge"):
        DescribedCLI(
            "fit",
            [
                "--config",
                str(without_data(tmp_path)),
                "--config",
                str(layer),
                "--shared.sam2_size=huge",
                "--trainer.accelerator",
                "cpu",
            ],
        )


@pytest.mark.parametrize(
    "path", [path for path in files() if slot_of(path) == SLOTS["vlm"] and path.stem != "minilm"], ids=name_of
)
def test_a_vlm_is_swapped_under_adapters_by_its_yaml_alone(build, path):
    arguments = [f"--{SLOTS['vlm']}", str(path), f"--{SLOTS['adapters']}", str(CONFIGS / "adapters" / "dora.yaml")]
    backbone = build("--config", str(MAIN), *arguments).model.fusion.backbone
    inside = {id(module) for module in backbone.language_model.modules()}
    reached = [module for _, module in adapter_layers(backbone)]
    assert len(reached) == 5 * len(backbone.language_model.layers) and all(id(module) in inside for module in reached)


@pytest.mark.parametrize("path", [path for path in files() if runs_alone(path)], ids=name_of)
def test_what_a_run_must_say(build, path):
    """A run that is stopped goes on, and can be looked at: this is stated in YAML, where everybody sees it."""
    said = yaml.safe_load(path.read_text())
    cli = build("--config", str(path))
    assert "seed_everything" in said
    assert any(
        callback.save_last and not callback._enable_version_counter for callback in cli.trainer.checkpoint_callbacks
    )
    assert any(isinstance(callback, LastCheckpoint) for callback in cli.trainer.callbacks)
    assert [type(logger).__name__ for logger in cli.trainer.loggers] == ["TensorBoardLogger"]
    assert Path(cli.trainer.log_dir).resolve() == Path(cli.config.shared["run"]).resolve()


@pytest.mark.parametrize(("plan", "name"), [(plan, name) for plan in PLANS for name in built_of(plan)])
def test_the_runs_of_every_plan_build(build, monkeypatch, plan, name):
    monkeypatch.chdir(CONFIGS.parent)
    run = runs_of(plan)[name]
    cli = build(*run.arguments({"run": "runs/x"}), "--seed_everything=3", "--data.init_args.reader.seed=3")
    assert cli.datamodule.reader.seed == 3 and cli.model.collator is not None
    assert cli.model.optimization.parameter_groups(cli.model)


def test_every_layer_of_a_variant_is_in_the_plan_and_names_its_run():
    used = {config for run in runs_of("ablations.yaml").values() for config in run.configs}
    assert {f"configs/overlays/ablations/{path.name}" for path in VARIANTS.glob("*.yaml")} <= used
    assert all(
        yaml.safe_load(path.read_text())["shared"]["run"] == f"runs/{path.stem}" for path in VARIANTS.glob("*.yaml")
    )


def test_the_rows_of_the_ablations_are_told_apart():
    plan = AblationPlan.read(STUDIES / "ablations.yaml")
    rows = [row for variant in plan.variants.values() for row in variant.rows.values()]
    assert len(set(rows)) == len(rows)
    assert {*plan.segment_tokens, *(variant.reference for variant in plan.variants.values())} <= set(rows) and set(
        plan.learning_curves
    ) <= plan.variants.keys()


@pytest.mark.parametrize(
    ("line", "part", "expected"),
    [
        ("--shared.trunk=test_resnet", "segmentation.backbone.trunk.network", "FeatureListNet"),
        (
            "--model.init_args.fusion.init_args.backbone.init_args.vision_model=test_convnext",
            "fusion.backbone.vision.network",
            "FeatureListNet",
        ),
        (
            f"--model.init_args.connector={CONFIGS / 'connector' / 'convolution.yaml'}",
            "connector",
            "ConvolutionConnector",
        ),
        (f"--model.init_args.loss={CONFIGS / 'loss' / 'sigmoid.yaml'}", "loss", "SigmoidLoss"),
    ],
)
def test_a_part_is_swapped_by_one_line(build, line, part, expected):
    """The swapped model still gives unit embeddings of a prompted image, and a loss with gradients."""
    model = build("--config", str(MAIN), line, "--model.init_args.alignment_steps=0").model
    assert type(model.get_submodule(part)).__name__ == expected
    item = EmbeddingInput("find it", (torch.zeros(3, 256, 256, dtype=torch.uint8),), image_keys=("a",))
    sample = Sample(
        "s",
        "t",
        item,
        EmbeddingInput("a red fox"),
        (EmbeddingInput("a blue fox"),),
        Region(torch.tensor([0.1, 0.1, 0.5, 0.5])),
    )
    model.train_modes = {"box": 1.0}
    output = model.loss(
        model.embed_pairs(
            model.collator.collate_train([sample, replace(sample, key="other", target=EmbeddingInput("a cup"))])
        )
    )
    output.loss.backward()
    assert output.loss.isfinite() and all(
        parameter.grad is not None for parameter in model.connector.parameters() if parameter.requires_grad
    )
