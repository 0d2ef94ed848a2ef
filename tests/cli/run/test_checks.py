from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning import LightningModule

from virtue_pl.cli.main import main
from virtue_pl.cli.run.checks import check_run
from virtue_pl.losses.contrastive import ContrastiveLoss, InfoNCELoss
from virtue_pl.types import VirtueError


class Model(LightningModule):
    def __init__(self, loss: ContrastiveLoss | None = None, by_itself: bool = False) -> None:
        super().__init__()
        self.loss = loss
        self.automatic_optimization = not by_itself


def data(negatives: int, batch_size: int = 4) -> Any:
    return SimpleNamespace(num_negatives=negatives, batch_size=batch_size)


def trainer(clip: float | None = None, world_size: int = 1) -> Any:
    return SimpleNamespace(
        gradient_clip_val=clip, world_size=world_size, max_steps=10, max_epochs=-1, limit_val_batches=1.0, callbacks=[]
    )


MIXTURE = SimpleNamespace(parts={"a": data(0), "b": data(0)}, batch_size=4)


@pytest.mark.parametrize("found", [data(0), MIXTURE], ids=["one set", "a mixture"])
def test_a_loss_among_own_negatives_needs_some(found: Any) -> None:
    with pytest.raises(
        VirtueError,
        match=(
            r"own_negatives_weight is 0\.5, but the data gives no hard negatives: set it to 0, or the data's"
            r" num_negatives"
        ),
    ):
        check_run(Model(InfoNCELoss(own_negatives_weight=0.5)), found, trainer())
    check_run(Model(InfoNCELoss()), found, trainer())
    check_run(
        Model(InfoNCELoss(own_negatives_weight=0.5)),
        SimpleNamespace(parts={"a": data(0), "b": data(2)}, batch_size=4),
        trainer(),
    )


def test_one_pair_alone_is_nothing_to_tell_apart() -> None:
    with pytest.raises(VirtueError, match=r"data\.batch_size is 1 on one rank"):
        check_run(Model(InfoNCELoss()), data(0, batch_size=1), trainer())
    check_run(Model(InfoNCELoss()), data(0, batch_size=1), trainer(world_size=2))
    check_run(Model(InfoNCELoss()), data(3, batch_size=1), trainer())
    check_run(Model(), data(0, batch_size=1), trainer())


def test_clipping_that_nobody_would_do_is_refused() -> None:
    with pytest.raises(VirtueError, match=r"trainer\.gradient_clip_val is 0\.5, but Model optimizes by itself"):
        check_run(Model(by_itself=True), None, trainer(clip=0.5))
    check_run(Model(), None, trainer(clip=0.5))


def test_check_and_fit_refuse_before_the_first_step(config_file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "fit"):
        assert (
            main(
                [
                    command,
                    "--config",
                    str(config_file),
                    "--trainer.gradient_clip_val",
                    "1.0",
                    "--model.init_args.by_itself",
                    "true",
                ]
            )
            == 1
        )
        assert "trainer.gradient_clip_val is 1, but Root optimizes by itself" in capsys.readouterr().err
