"""A gradient that is not finite stops a training before the optimizer, and names what was read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from virtue_pl.callbacks.checkpoint import LastCheckpoint
from virtue_pl.engine.finite import SMALLEST_SCALE, ReadBatches, check_gradients, check_scale
from virtue_pl.engine.module import VirtueModule
from virtue_pl.types import VirtueError


def parameter(*gradient: float) -> nn.Parameter:
    found = nn.Parameter(torch.zeros(len(gradient)))
    found.grad = torch.tensor(gradient)
    return found


def test_finite_gradients_pass_and_none_are_passed_over() -> None:
    check_gradients([("a", parameter(1.0, -3e38)), ("b", nn.Parameter(torch.zeros(1)))], 0, ReadBatches())
    check_gradients([("b", nn.Parameter(torch.zeros(1)))], 0, ReadBatches())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_that_is_not_finite_is_named_with_the_samples(value: float) -> None:
    named = [("a", parameter(1.0)), ("b", parameter(0.0, value)), ("c", parameter(value))]
    batches = ReadBatches()
    batches.begin(tuple(f"set/{number}" for number in range(10)))
    with pytest.raises(
        VirtueError, match=r"^step 4: the gradient of b and 1 more is not finite; rank 0 read set/0, "
    ) as e:
        check_gradients(named, 4, batches)
    assert "set/7 and 2 more; no weight was changed" in str(e.value) and "\n" not in str(e.value)


class Diverging(VirtueModule):
    """A model whose loss is not finite in one batch; None: at step 3."""

    def __init__(self, batch: int | None = None) -> None:
        super().__init__()
        self.batch = batch
        self.weight = nn.Parameter(torch.ones(1))
        self.load_and_freeze()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (
            self.weight
            * (float("nan") if (self.global_step == 3 if self.batch is None else batch_idx == self.batch) else 1.0)
        ).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.1)


def test_a_training_stops_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    batches = [SimpleNamespace(keys=(f"set/{number}",)) for number in range(6)]
    model, saving = Diverging(), ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[saving, LastCheckpoint()], **options)
    with pytest.raises(VirtueError, match=r"step 3: the gradient of weight is not finite; rank 0 read set/3; "):
        trainer.fit(model, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3 and torch.equal(saved["state_dict"]["weight"], model.weight.detach())


def fit(model: VirtueModule, **options: Any) -> None:
    batches = [SimpleNamespace(keys=(f"set/{number}",)) for number in range(8)]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", enable_checkpointing=False, **{"max_epochs": 1, **quiet, **options})
    trainer.fit(model, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5])
def test_of_accumulated_batches_the_one_that_broke_is_named_first(batch: int, precision: Any) -> None:
    first = 4 * (batch // 4)
    last = [number for number in (first + 3,) if number != batch]
    others = [number for number in range(first, first + 4) if number not in (batch, *last)]
    named = ", ".join(f"set/{number}" for number in (batch, *last, *others))
    model = Diverging(batch)
    with pytest.raises(VirtueError, match=f"step {first // 4}: .* rank 0 read {named}; no weight was changed"):
        fit(model, accumulate_grad_batches=4, precision=precision)


def test_float16s_scaler_passes_over_a_step_and_not_over_all() -> None:
    """With NaN, it would halve its scale for ever, and no weight would change."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    scaler = torch.amp.GradScaler("cpu")  # type: ignore[attr-defined]
    model = Diverging(2)
    fit(model, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert model.weight.isfinite() and scaler.get_scale() == 2.0**15
    check_scale(SMALLEST_SCALE, 0, ReadBatches())

    class Broken(Diverging):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self.weight * float("nan")).sum()

    scaler = torch.amp.GradScaler("cpu")  # type: ignore[attr-defined]
    with pytest.raises(VirtueError, match=r"step 27: no gradient is finite, however small the scale .* read set/3; "):
        fit(Broken(), plugins=[MixedPrecision("16-mixed", "cpu", scaler)], max_epochs=9)
