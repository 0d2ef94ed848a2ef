"""The paper's configs under configs/overlays/published.yaml are its training recipe, as its published code runs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft.tuners.lora.variants import DoraLinearVariant
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from virtue_pl.adapters.dropout import QuickDropout
from virtue_pl.adapters.lora import adapter_layers
from virtue_pl.cli.described import DescribedCLI
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.types import EmbeddingBatch, PairIds

CONFIGS = Path(__file__).parents[2] / "configs"
OVERLAY = CONFIGS / "overlays/published.yaml"
STAGES = {
    "2b": [CONFIGS / "virtue_2b.yaml"],
    "7b": [CONFIGS / "virtue_7b.yaml"],
    "2b on SCaR": [CONFIGS / "virtue_2b.yaml", CONFIGS / "overlays/stages/scar.yaml"],
}


def build(*configs: Path) -> Any:
    """What a command line of these configs builds, on the meta device."""
    arguments = [word for path in configs for word in ("--config", str(path))]
    return DescribedCLI("fit", [*arguments, "--trainer.accelerator", "cpu"])


@pytest.fixture(scope="module", params=STAGES, ids=list(STAGES))
def stage(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, build(*STAGES[request.param], OVERLAY)


def loss_of(cli: Any) -> InfoNCELoss:
    """The config's loss, off the meta device."""
    return InfoNCELoss(**vars(cli.config.model.init_args.loss.init_args))


def equal_pairs() -> EmbeddingBatch:
    """Five pairs, of which two have one target, two are of one sample, and two are on one image."""
    draw = lambda: normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), dim=-1)  # noqa: E731
    ids = PairIds(torch.tensor([0, 1, 1, 3, 4]), torch.tensor([9, 9, 7, 6, 5]), image_ids=torch.tensor([0, 0, 1, 2, 3]))
    return EmbeddingBatch(draw(), draw().roll(1, 0), torch.zeros(0, 6), ids)


def test_the_loss_is_infonce_over_every_candidate_of_the_batch(stage: tuple[str, Any]) -> None:
    batch, loss = equal_pairs(), loss_of(stage[1])
    expected = cross_entropy(batch.queries @ batch.targets.T / 0.02, torch.arange(5))
    torch.testing.assert_close(loss(batch).loss, expected)
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_the_adapters_drop_as_peft_does(stage: tuple[str, Any]) -> None:
    language_model = stage[1].model.fusion.backbone.language_model
    reached = dict(adapter_layers(language_model))
    assert {name.rpartition(".")[2] for name in reached} == {"q_proj", "k_proj", "v_proj", "o_proj", "down_proj"}
    assert len(reached) == 5 * len(language_model.layers)
    for layer in reached.values():
        assert (layer.r["default"], layer.lora_alpha["default"]) == (8, 64)
        assert type(layer.lora_variant["default"]) is DoraLinearVariant
        assert type(layer.lora_dropout["default"]) is nn.Dropout and layer.lora_dropout["default"].p == 0.1


def test_batches_are_blocks_of_64_samples_as_they_come(stage: tuple[str, Any]) -> None:
    name, cli = stage
    data, on_scar = cli.datamodule, name.endswith("SCaR")
    assert (data.batch_size, data.block_size) == (1024, 64) and set(data.weights.values()) == {1.0}
    assert len(data.weights) == (5 if on_scar else 20)
    for part in (data.parts[name] for name in data.weights):
        assert not part.sampling.distinct and part.sampling.num_negatives == 0
        assert part.sampling.train_rows == (None if on_scar else 100_000)


def test_the_optimizer_is_the_papers(stage: tuple[str, Any]) -> None:
    name, cli = stage
    optimization, trainer = cli.model.optimization, cli.trainer
    assert (optimization.lr, optimization.warmup_steps, optimization.schedule) == (2e-5, 200, "linear")
    assert trainer.max_steps == (1000 if name.endswith("SCaR") else 2000) and trainer.precision == "bf16-mixed"
    assert cli.model.gradient_cache.chunk_size == 2
    processor = cli.model.fusion.backbone.processor
    assert (processor.min_pixels, processor.max_pixels) == (4 * 28 * 28, 1280 * 28 * 28)


def test_only_what_departs_is_changed() -> None:
    """Without the layer all else is the same, and each of its three options is what it is without it."""
    plain, published = build(*STAGES["2b"]), build(*STAGES["2b"], OVERLAY)
    found = {
        name: (value, flat(plain.config)[name])
        for name, value in flat(published.config).items()
        if flat(plain.config)[name] != value and not name.endswith("vlm_model")  # a folder made for each check
    }
    assert {name.rpartition(".")[2]: values for name, values in found.items()} == {
        "exact_dropout": (True, False),
        "mask_false_negatives": (False, True),
        "distinct": (False, True),
    }
    batch = equal_pairs()
    assert loss_of(plain)(batch).loss < loss_of(published)(batch).loss
    layer = plain.model.fusion.backbone.layers[0].self_attn.q_proj
    assert type(layer.lora_dropout["default"]) is QuickDropout


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted name."""
    values = vars(config).items() if hasattr(config, "__dict__") else config.items()
    found: dict[str, Any] = {}
    for name, value in values:
        nested = (hasattr(value, "__dict__") and type(value).__name__ == "Namespace") or isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("size", ["2b", "7b"])
def test_what_departs_is_marked_in_the_configs_as_such(size: str) -> None:
    """The three places carry (*), no [P] without it, and the layer is named at the top."""
    text = (CONFIGS / f"virtue_{size}.yaml").read_text()
    marked = [line for line in text.splitlines() if "(*)" in line and not line.startswith("#")]
    assert [re.sub(r":.*", "", line).strip() for line in marked] == ["adapter", "mask_false_negatives", "data"]
    assert "configs/overlays/published.yaml" in text.partition("seed_everything")[0]
    assert yaml.safe_load(OVERLAY.read_text()).keys() == {"model", "data"}
