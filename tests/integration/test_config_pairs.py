"""Every pair of parts from configs/ is checked on both configs: each fits, or is refused by a line that names the key.

Few runs cover all pairs (`cover_pairs`). Data and weights are left out: a language model is built by its sizes on the
meta device, the small one with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from fixtures.paper_configs import without_data
from fixtures.tiny_models import save_text_model
from virtue_pl.cli.described import DescribedCLI
from virtue_pl.cli.run.checks import check_run, check_trial
from virtue_pl.cli.run.trial import Trial, made_up
from virtue_pl.types import VirtueError

CONFIGS = Path(__file__).parents[2] / "configs"
FUSION = "model.init_args.fusion"


def parts(folder: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


CHOICES: dict[str, list[str]] = {
    "config": ["virtue_2b", "virtue_mini"],
    "vlm": parts("vlm"),
    "segmentation": ["own", *[name for name in parts("overlays/segmentation") if name != "none"]],
    "connector": parts("connector"),
    "loss": parts("loss"),
    "adapters": ["none", *parts("adapters")],
}


def cover_pairs(choices: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """Yield few combinations in which every two values of two settings meet: each time the one with most new pairs."""
    settings = [[(name, value) for value in values] for name, values in choices.items()]
    left = {frozenset(pair) for two in combinations(settings, 2) for pair in product(*two)}
    while left:
        row: dict[str, str] = dict(min(map(sorted, left)))
        for values in settings:
            new = {value: sum(frozenset({value, other}) in left for other in row.items()) for value in values}
            name, best = max(new, key=lambda value: new[value])
            row.setdefault(name, best)
        left -= {frozenset(pair) for pair in combinations(row.items(), 2)}
        yield {name: row[name] for name in choices}


ROWS = list(cover_pairs(CHOICES))


def test_every_pair_is_covered_by_few_runs() -> None:
    for first, second in combinations(CHOICES, 2):
        met = {(row[first], row[second]) for row in ROWS}
        assert met == set(product(CHOICES[first], CHOICES[second]))
    assert len(ROWS) <= 45


def refusal(row: Mapping[str, str]) -> str | None:
    """What is wrong with a combination, if anything is: the words that the refusal must have."""
    own = row["segmentation"] == "own"
    small, trunk = row["vlm"] == "minilm", own and row["config"] == "virtue_mini"
    if small and row["adapters"] != "none":
        return "adapter.targets: there is no linear map 'q_proj'"
    if row["connector"] in ("mask", "roi") and not small:
        return "class_names: ClassNames reads"
    if row["connector"] in ("mask", "mask_alone") and not trunk:
        return "segmentation.init_args.backbone.init_args.predict_masks to true"
    if row["connector"] == "roi" and not trunk:
        return "set dense_hints to true"
    return None


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_text_model(tmp_path_factory.mktemp("text_model"), hidden_size=64))


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both configs without the dozens of sets of MMEB, whose options take seconds to read."""
    return {
        "virtue_2b": without_data(tmp_path_factory.mktemp("config")),
        "virtue_mini": CONFIGS / "virtue_mini.yaml",
    }


def arguments(row: Mapping[str, str], config: Path) -> list[str]:
    """A line for each part, as the configs' first lines say it."""
    overlay = ["--config", str(CONFIGS / f"overlays/segmentation/{row['segmentation']}.yaml")]
    connector = CONFIGS / f"connector/{row['connector']}.yaml"
    adapter = "null" if row["adapters"] == "none" else str(CONFIGS / f"adapters/{row['adapters']}.yaml")
    dims = ["--model.init_args.loss.init_args.dims", "[32, 16]"] if row["loss"] == "matryoshka" else []
    negatives = ["--model.init_args.loss.init_args.own_negatives_weight", "0"] if row["loss"] == "infonce" else []
    if row["loss"] == "matryoshka":
        negatives = ["--model.init_args.loss.init_args.loss.init_args.own_negatives_weight", "0"]
    return [
        "--config",
        str(config),
        *(overlay if row["segmentation"] != "own" else []),
        f"--{FUSION}",
        str(CONFIGS / f"vlm/{row['vlm']}.yaml"),
        "--model.init_args.connector",
        str(connector),
        "--model.init_args.loss",
        str(CONFIGS / f"loss/{row['loss']}.yaml"),
        *dims,
        *negatives,
        f"--{FUSION}.init_args.adapter",
        adapter,
        *(["--model.init_args.alignment_steps", "0"] if row["connector"] == "convolution" else []),
        *(["--shared.canvas_size", "256"] if row["vlm"] == "minilm" else []),  # it is run, not on the meta device alone
        *(["--data", "null"] if row["config"] == "virtue_mini" else []),
        "--trainer.accelerator",
        "cpu",
        "--trainer.precision",
        "32-true",
        "--trainer.limit_val_batches",
        "1",
    ]


class WithoutWeights(DescribedCLI):
    """`check` of a model whose files are not there: it has none to read, and its small text encoder is a tiny one."""

    text_model: str

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        self.forget(self.config.model)

    def forget(self, config: Any) -> None:
        for name, value in list(vars(config).items()) if isinstance(config, Namespace) else ():
            if name == "weights" or name.endswith("_weights"):
                config[name] = None
            elif name == "text_model":
                config[name] = self.text_model
            elif name in ("trunk", "vision_model"):
                config[name] = "test_efficientnet"
            elif name == "vlm_sizes" and value is not None:
                config[name] = with_two_layers(value)
            else:
                self.forget(value)


def with_two_layers(sizes: dict[str, Any]) -> dict[str, Any]:
    """A language model's sizes with two of its layers: the others are like them."""
    few: dict[str, Any] = {"num_hidden_layers": 2, "layer_types": None, "max_window_layers": 2}
    where = sizes.get("text_config", sizes)
    cut = {name: value for name, value in few.items() if name in where}
    return {**sizes, "text_config": {**where, **cut}} if "text_config" in sizes else {**sizes, **cut}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.values()))
def test_parts_fit_or_the_key_is_named(
    row: dict[str, str], configs: dict[str, Path], text_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WithoutWeights, "text_model", text_model, raising=False)

    def check() -> Trial:
        cli = WithoutWeights("fit", arguments(row, configs[row["config"]]))
        assert cli.is_described == (row["vlm"] != "minilm")
        check_run(cli.model, cli.datamodule, cli.trainer)
        data = MadeUp() if cli.is_described else MadeUpRows()
        return check_trial(cli.model, data, cli.trainer)

    expected = refusal(row)
    if expected is None:
        trial = check()
        assert {"train/loss", "val/loss", "val/hit@1"} <= trial.metrics and not trial.untried
    else:
        with pytest.raises(VirtueError, match=expected.replace(".", r"\.")) as caught:
            check()
        assert "\n" not in str(caught.value)


class MadeUp:
    """Data that is not there: rows are made up."""

    num_negatives = 0
    train_dataloader: Callable[[], Any]

    def first_samples(self, rows: int) -> list[Any]:
        raise VirtueError("train: no shards are there")

    first_rankings = first_samples


class MadeUpRows(MadeUp):
    """Data for a model that is built whole, for which rows must be there."""

    def first_samples(self, rows: int) -> list[Any]:
        return made_up("train", 0)

    def first_rankings(self, rows: int) -> list[Any]:
        return made_up("val", 0)
