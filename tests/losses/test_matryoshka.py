from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.losses.matryoshka import MatryoshkaLoss
from virtue_pl.losses.sigmoid import SigmoidLoss
from virtue_pl.types import EmbeddingBatch, PairIds, VirtueError


def batch(dim: int = 12) -> EmbeddingBatch:
    draw = lambda rows: normalize(torch.randn(rows, dim), dim=-1)  # noqa: E731
    ids = PairIds(torch.arange(5), torch.arange(5) + 9, torch.arange(10) + 99, torch.arange(5).repeat_interleave(2))
    return EmbeddingBatch(draw(5), draw(5), draw(10), ids)


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_it_is_the_weighted_mean_over_lengths(kind: type[InfoNCELoss]) -> None:
    found, inner = batch(), kind(0.2)
    output = MatryoshkaLoss(inner, [12, 3], [1.0, 3.0])(found)
    short = EmbeddingBatch(
        *(normalize(part[:, :3], dim=-1) for part in (found.queries, found.targets, found.negatives)),
        found.ids,
    )
    whole, part = inner(found), inner(short)
    torch.testing.assert_close(output.loss, (whole.loss + 3 * part.loss) / 4)
    assert (
        output.metrics["loss_3"] == part.loss
        and output.metrics["in_batch_accuracy"] == whole.metrics["in_batch_accuracy"]
    )


def test_it_tells_what_its_loss_needs() -> None:
    assert (
        MatryoshkaLoss(InfoNCELoss(own_negatives_weight=0.5), [4]).needs_negatives == "loss.own_negatives_weight is 0.5"
    )
    assert MatryoshkaLoss(SigmoidLoss(), [4]).needs_negatives is None


@pytest.mark.parametrize(
    ("dims", "weights", "told"),
    [
        ([], None, r"loss\.dims is \[\]"),
        ([0], None, r"loss\.dims is \[0\]"),
        ([4, 2], [0.0, 0.0], r"loss\.dim_weights are \[0\.0, 0\.0\], expected one above 0"),
        ([4, 2], [2.0, -1.0], r"loss\.dim_weights are \[2\.0, -1\.0\], expected one above 0, and none below"),
        ([4, 2], [1.0], r"dim_weights are 1, expected one for each of the 2 dims"),
    ],
)
def test_settings_that_say_nothing_are_refused(dims: list[int], weights: list[float] | None, told: str) -> None:
    with pytest.raises(VirtueError, match=told):
        MatryoshkaLoss(InfoNCELoss(), dims, weights)


def test_a_length_beyond_the_embeddings_is_refused() -> None:
    with pytest.raises(VirtueError, match=r"loss\.dims holds 16, but embeddings have 12 numbers"):
        MatryoshkaLoss(InfoNCELoss(), [16])(batch())
