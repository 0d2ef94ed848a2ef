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
from virtue_pl.engine.finite import check_gradients
from virtue_pl.engine.module import VirtueModule
from virtue_pl.types import VirtueError


def parameter(*gradient: float) -> nn.Parameter:
    found = nn.Parameter(torch.zeros(len(gradient)))
    found.grad = torch.tensor(gradient)
    return found


def test_finite_gradients_pass_and_none_are_passed_over() -> None:
    check_gradients([("a", parameter(1.0, -3e38)), ("b", nn.Parameter(torch.zeros(1)))], 0, [])
    check_gradients([("b", nn.Parameter(torch.zeros(1)))], 0, [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_that_is_not_finite_is_named_with_the_samples(value: float) -> None:
    named = [("a", parameter(1.0)), ("b", parameter(0.0, value)), ("c", parameter(value))]
    keys = [f"set/{number}" for number in range(10)]
    with pytest.raises(
        VirtueError, match=r"^step 4: the gradient of b and 1 more is not finite; rank 0 read set/0, "
    ) as e:
        check_gradients(named, 4, keys)
    assert "set/7 and 2 more; no weight was changed" in str(e.value) and "\n" not in str(e.value)


class Diverging(VirtueModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.load_and_freeze()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.weight * (float("nan") if self.global_step == 3 else 1.0)).sum()

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
