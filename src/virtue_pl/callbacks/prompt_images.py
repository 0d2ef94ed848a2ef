"""`PromptImages`: drawn retrievals in TensorBoard, the same queries at every validation, for its slider over steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from virtue_pl.callbacks.panel import render_panel
from virtue_pl.preprocessing.contrastive_collator import evaluation_query
from virtue_pl.types import IMAGE_TOKEN, RankingBatch, RankingOutput, VirtueError, VisualPrompt


class PromptImages(Callback):
    """Callback that draws the first queries of a validation or test.

    A drawing has the image, the prompt, the predicted mask, and the ranked captions with the right one marked.

    Query i is drawn in mode i modulo the number of modes that give the model an image; a query without an image is left
    out, and so is one whose candidates are images. TensorBoard shows them as `val/retrieved/NUMBER_MODE` (or
    `test/...`).

    Args:
        num: how many queries to draw.
        ranking: whose captions to show, a name in the samples' `rankings`.
        modes: which prompt modes to show; by default all that are evaluated.

    Example:
        >>> trainer = Trainer(logger=TensorBoardLogger("runs"), callbacks=[PromptImages(num=4, modes=["box"])])
    """

    def __init__(self, num: int = 8, ranking: str = "hit@1", modes: Sequence[str] | None = None) -> None:
        if num < 1:
            raise VirtueError(f"PromptImages.num is {num}, expected at least 1; leave the callback out to draw none")
        self.num = num
        self.ranking = ranking
        self.modes = modes
        self._drawn = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn = 0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._draw(trainer, outputs, batch, "val")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._draw(trainer, outputs, batch, "test")

    def _draw(self, trainer: Trainer, outputs: Any, batch: Any, stage: str) -> None:
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.sanity_checking or not (trainer.is_global_zero and isinstance(batch, RankingBatch) and writers):
            return
        with_image = set(batch.queries.layout.use_rows)
        modes = self._modes(batch.modes[: len(outputs.scores) // len(batch)])
        for sample in range(len(batch)):
            seen = [mode for mode in modes if mode * len(batch) + sample in with_image]
            of_images = any(candidate.images for candidate in batch.samples[sample].candidates)
            if not seen or of_images or self._drawn >= self.num:
                continue
            mode = seen[self._drawn % len(seen)]
            panel = panel_of(batch, outputs, sample, mode, self.ranking)
            for writer in writers:
                writer.add_image(f"{stage}/retrieved/{self._drawn:02d}_{batch.modes[mode]}", panel, trainer.global_step)
            self._drawn += 1

    def _modes(self, evaluated: Sequence[str]) -> list[int]:
        """Return the numbers of the modes to draw: the chosen ones, or all where queries have no regions."""
        if set(evaluated) <= {"no_prompt", "blind"}:
            return list(range(len(evaluated)))
        chosen = [number for number, mode in enumerate(evaluated) if self.modes is None or mode in self.modes]
        if not chosen:
            raise VirtueError(
                f"PromptImages.modes are {', '.join(self.modes or ())}, expected some of those evaluated:"
                f" {', '.join(evaluated)}"
            )
        return chosen


def panel_of(
    batch: RankingBatch, output: RankingOutput, sample: int, mode: int, ranking: str = "hit@1"
) -> UInt8[Tensor, "3 height width"]:
    """Draw the panel of one sample, whose query has an image, in mode number `mode` of its batch.

    The prompt is drawn as the segmentation model reads it, or, where the model is shown the region in another way (as a
    crop), as the query gives it.

    Raises VirtueError if the sample has no ranking of that name.
    """
    found = batch.samples[sample]
    if ranking not in found.rankings:
        raise VirtueError(
            f"{found.key}: no ranking {ranking!r} to draw, expected one of {', '.join(found.rankings)}"
            " (PromptImages.ranking)"
        )
    row = mode * len(batch) + sample
    chosen = list(found.rankings[ranking])
    captions = [found.candidates[i].text.replace(IMAGE_TOKEN, " ") for i in chosen]
    title = f"{batch.modes[mode]} · {found.task} · {found.key}"
    read = prompt_of(batch, row)
    return render_panel(
        found.query.images[0],
        evaluation_query(found, batch.modes[mode]).prompt if read.is_empty else read,
        mask_of(output, row),
        captions,
        output.scores[row][chosen],
        0,
        title,
    )


def prompt_of(batch: RankingBatch, row: int) -> VisualPrompt:
    """Return the prompt on the first image of a row of `batch.queries`; empty if the row has none."""
    uses = batch.queries.layout.prompts_of_row.get(row)
    return batch.queries.prompts.prompts[uses[0]].to("cpu") if uses else VisualPrompt()


def mask_of(output: RankingOutput, row: int) -> Float[Tensor, "height width"] | None:
    """Return the logits of the mask predicted for a row; None if there is none."""
    if output.mask_logits is None or output.mask_rows is None:
        return None
    masks: Sequence[int] = torch.nonzero(output.mask_rows == row).flatten().tolist()
    return output.mask_logits[masks[0]] if masks else None
