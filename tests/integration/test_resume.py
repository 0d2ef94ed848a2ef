"""A stopped run, or one that finished and is continued, goes on as if nothing had happened: rows, dropout, validation.

Here in one process with a small module; `LastCheckpoint`, `ModelCheckpoint`, the data module and `VirtueModule` are
those of every run.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from fixtures.rank_processes import run_ranks
from fixtures.scar_files import write_scar
from resume.cases import Case, all_cases, covering_cases, pairs_of
from resume.compare import run_case
from resume.training import write_shards
from virtue_pl.callbacks.checkpoint import LastCheckpoint
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions
from virtue_pl.engine.module import VirtueModule

ROWS, BATCH, STEPS, VALIDATION = 22, 2, 30, 5
EPOCH = ROWS // BATCH


class Rows:
    """Numbers of rows, and the negatives that were drawn, as a batch."""

    fingerprints: ClassVar[dict[str, str]] = {}

    def collate_train(self, samples: Any) -> Tensor:
        drawn = [len(negative.text) for sample in samples for negative in sample.negatives]
        rows = [int(sample.key.rpartition("/")[2]) for sample in samples]
        return torch.tensor([[*rows, sum(drawn), float(torch.rand(()))]])

    def collate_eval(self, samples: Any) -> Tensor:
        return torch.tensor([[float(len(samples))]])


class Dropping(VirtueModule):
    """Drops out, and notes each step's rows and loss, and when it validates."""

    def __init__(self, notes: list[Any]) -> None:
        super().__init__()
        self.notes = notes
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.load_and_freeze()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch / ROWS).square().mean()
        self.notes.append((self.current_epoch, batch_idx, tuple(batch[0, :2].tolist()), loss.item()))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.validated = 0

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated += int(batch.sum())

    def on_validation_epoch_end(self) -> None:
        self.notes.append(("validation", self.global_step, self.validated))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Stop(Callback):
    """Stops a run behind a step: by SIGTERM, at once or when Lightning minds it or in validation, or as early stopping
    does.
    """

    def __init__(self, step: int, by: str) -> None:
        self.step, self.by = step, by

    def on_train_batch_end(self, trainer: Trainer, *more: Any) -> None:
        if trainer.global_step == self.step:
            if self.by in ("sigterm", "at the step"):
                os.kill(os.getpid(), signal.SIGTERM)
            if self.by == "at the step":
                raise SIGTERMException
            if self.by == "stopped early":
                trainer.should_stop = True

    def on_validation_batch_end(self, trainer: Trainer, *more: Any) -> None:
        if trainer.global_step == self.step and self.by == "validating":
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_scar(folder / "scar", train=[1, 2, 3, 1, 2, 1, 2, 1, 1, 2, 2, 4], val=[1, 2, 2, 2])
    convert_scar(folder / "scar", folder / "out", images_per_shard=3)
    return folder / "out"


@pytest.fixture(scope="module")
def fit(shards: Path) -> Callable[..., Any]:
    """`fit(folder, *callbacks)` gives a run's notes and its last weights; its checkpoints lie in `folder`."""

    def go(
        folder: Path,
        *callbacks: Callback,
        steps: int = STEPS,
        resume: bool = False,
        workers: int = 0,
        validation: int = VALIDATION,
        **options: Any,
    ) -> Any:
        seed_everything(0, verbose=False)
        notes: list[Any] = []
        model = Dropping(notes)
        data = SCaRDataModule(
            str(shards / "SCAR_mini"),
            str(shards / "SCaR_eval_mini_val"),
            batch_size=BATCH,
            sampling=SamplingOptions(num_negatives=2, shuffle_buffer=5, sample_buffer=4),
            reader=ReaderOptions(num_workers=workers),
        )
        data.connect(Rows())
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            val_check_interval=validation,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
                LastCheckpoint(),
                *callbacks,
            ],
            **options,
        )
        checkpoint = {"ckpt_path": str(folder / "last.ckpt"), "weights_only": True} if resume else {}
        try:
            trainer.fit(model, data, **checkpoint)
        except SIGTERMException:
            pass
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        return notes, torch.cat([weight.flatten() for weight in weights])

    return go


@pytest.fixture
def run(fit: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`fit` in this test's folder."""
    return partial(fit, tmp_path)


@pytest.fixture(scope="module")
def whole(fit: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    """`whole(validation)` gives what `fit` does of a run that nothing stops."""
    return cache(lambda validation: fit(tmp_path_factory.mktemp("whole"), validation=validation))


def stopped(run: Callable[..., Any], by: str, step: int, folder: Path, **options: Any) -> list[Any]:
    """Return the notes of a run that ends behind a step, and leaves `last.ckpt`."""
    if by == "finished":
        return run(steps=step, **options)[0]
    if by == "killed":  # what a checkpoint of that step holds
        notes, _ = run(steps=step + 1, **options)
        os.replace(folder / f"step={step}.ckpt", folder / "last.ckpt")
        trained = [number for number, note in enumerate(notes) if note[0] != "validation"]
        return notes[: trained[-1]]
    return run(Stop(step, by), **options)[0]


ENDS = [
    (by, step)
    for by in ("finished", "sigterm", "at the step", "validating", "stopped early", "killed")
    for step in (5, 7, EPOCH, EPOCH + 1, 2 * EPOCH)
    if by not in ("validating", "at the step") or step == VALIDATION
]


@pytest.mark.parametrize(("by", "step"), ENDS)
def test_a_run_goes_on_as_if_nothing_had_happened(
    run: Callable[..., Any], whole: Callable[[int], Any], tmp_path: Path, by: str, step: int
) -> None:
    expected, weights = whole(VALIDATION)
    before = stopped(run, by, step, tmp_path)
    after, found = run(resume=True)
    assert merge(before, after) == expected
    assert torch.equal(found, weights)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("by", "step"), [("sigterm", 7), ("finished", EPOCH), ("sigterm", EPOCH)])
def test_with_workers_and_again_and_again(
    run: Callable[..., Any], whole: Callable[[int], Any], tmp_path: Path, by: str, step: int
) -> None:
    expected, weights = whole(VALIDATION)
    notes = stopped(run, by, step, tmp_path, workers=2)
    for more in (step + 3, step + 6):
        notes = merge(notes, run(steps=more, resume=True, workers=more % 3)[0])
    last, found = run(resume=True, workers=1)
    assert merge(notes, last) == expected
    assert torch.equal(found, weights)


@pytest.mark.parametrize("by", ["finished", "sigterm", "at the step", "validating", "stopped early", "killed"])
def test_a_validation_at_the_end_of_an_epoch_is_not_lost(
    run: Callable[..., Any], whole: Callable[[int], Any], tmp_path: Path, by: str
) -> None:
    expected, weights = whole(EPOCH)
    before = stopped(run, by, EPOCH, tmp_path, validation=EPOCH)
    after, found = run(resume=True, validation=EPOCH)
    assert merge(before, after, EPOCH) == expected
    assert torch.equal(found, weights)


def merge(before: list[Any], after: list[Any], validation: int = VALIDATION) -> list[Any]:
    """Return both runs' notes, a validation that both did at the same step once, and none that only stopping brings."""
    seen = [note for note in before if note[0] == "validation"]
    found = before + [note for note in after if note not in seen]
    return [note for note in found if note[0] != "validation" or note[1] % validation == 0]


def test_the_covering_cases_have_every_pair_and_are_few() -> None:
    cases = covering_cases()
    assert set().union(*map(pairs_of, cases)) == set().union(*map(pairs_of, all_cases()))
    assert len(all_cases()) == 144 and len(cases) <= 20 and cases == covering_cases()


@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    "case",
    [
        Case("kill -9", 1, 2, "mixture", "gradient cache"),
        Case("SIGTERM", 2, 1, "SCaR", "whole batch"),
    ],
    ids=lambda case: case.name,
)
def test_a_case_of_make_test_resume(tmp_path: Path, case: Case) -> None:
    run_ranks(tmp_path / "shards", write_shards, tmp_path / "shards", number=1)
    (tmp_path / "case").mkdir()
    assert run_case(case, tmp_path / "shards", tmp_path / "whole", tmp_path / "case")["problem"] == ""
