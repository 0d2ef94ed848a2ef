"""Two real processes, each with a gradient cache, give the loss and the gradients of one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from fixtures.rank_processes import run_ranks
from fixtures.tiny_virtue import samples, tiny_virtue
from virtue_pl.engine.gradient_cache import FunctionEncoder, GradientCache
from virtue_pl.engine.ranks.unused_parameters import UnusedParameters
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.connector import MaskConnector
from virtue_pl.types import EmbeddingBatch, EncoderBatch, ImageBatch, PairIds, PromptBatch

PAIRS, PER_QUERY, DIM = 8, 2, 6
NEGATIVES = {"all": range(PAIRS * PER_QUERY), "uneven": (1, 4, 5, 13), "one rank's": (9, 15), "none": ()}
"""The hard negatives that are there, negative k of pair k // 2: two processes hold different numbers of them."""


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target_ids = torch.arange(PAIRS)
    target_ids[5] = target_ids[1]
    return {
        "queries": torch.randn(PAIRS, DIM, generator=generator),
        "targets": torch.randn(PAIRS, DIM, generator=generator),
        "negatives": torch.randn(PAIRS * PER_QUERY, DIM, generator=generator),
        "target_ids": target_ids,
    }


def numbered(rows: torch.Tensor) -> EncoderBatch:
    """Rows that are known by their numbers."""
    none = torch.zeros(0, dtype=torch.long)
    return EncoderBatch(
        rows[:, None], torch.ones(len(rows), 1, dtype=torch.long), ImageBatch(), PromptBatch((), none), none
    )


class Encoder(nn.Module):
    """Each row is dropped from as its number says, on whichever rank it is; chunks of three do not divide a rank's
    rows.
    """

    def __init__(self, negatives: Iterable[int] = NEGATIVES["all"]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(DIM, DIM)
        self.loss = InfoNCELoss(0.2, learn_temperature=True, own_negatives_weight=0.5, symmetric=True, margin=0.5)
        self.cache = GradientCache(3)
        self.negatives = torch.tensor([*negatives], dtype=torch.long)

    def embed(self, vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        def encode(chunk: EncoderBatch) -> torch.Tensor:
            chosen = chunk.input_ids[:, 0]
            kept = torch.stack(
                [torch.rand(DIM, generator=torch.Generator().manual_seed(row)) > 0.3 for row in chosen.tolist()]
            )
            return normalize(self.layer(vectors[chosen] * kept / 0.7), dim=-1)

        return self.cache(FunctionEncoder(encode), numbered(rows))

    def forward(self, part: slice) -> torch.Tensor:
        data = inputs()
        rows = torch.arange(part.start, part.stop)
        owners = self.negatives // PER_QUERY
        own = (part.start <= owners) & (owners < part.stop)
        negative_rows = self.negatives[own]
        encoded = [
            self.embed(data[name], chosen) if len(chosen) else torch.zeros(0, DIM)
            for name, chosen in (("queries", rows), ("targets", rows), ("negatives", negative_rows))
        ]
        ids = PairIds(rows, data["target_ids"][rows], 100 + negative_rows, owners[own] - part.start)
        batch = EmbeddingBatch(*encoded, ids)
        return self.loss(batch).loss


class Alignment(nn.Module):
    """An alignment step, as DDP calls it: of this rank's share of the pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_virtue(partial(MaskConnector, summary=True))
        self.model.log = lambda *_, **__: None  # type: ignore[method-assign]
        for layer in (self.model.connector.summary.inside[-1], self.model.connector.summary.outside[-1]):  # type: ignore[union-attr]
            nn.init.normal_(layer.weight, std=0.1)
        self.model.eval()

    def forward(self, rank: int, world_size: int) -> torch.Tensor:
        rows = [row for row in samples(12) if row.region is not None][:6]
        share = len(rows) // world_size
        return self.model.alignment_step(self.model.collator.collate_train(rows[rank * share : (rank + 1) * share]))


def save(model: nn.Module, loss: torch.Tensor, file: str) -> None:
    """The mean of the ranks' losses, and the gradients, which DDP has averaged."""
    total = loss.detach().clone()
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        state = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
        save_file({**state, "loss": total / dist.get_world_size()}, file)


def align(rank: int, world_size: int, folder: str) -> None:
    """Two steps: DDP refuses the second one where the first left a parameter that it was not told of."""
    model, unused = DistributedDataParallel(Alignment()), UnusedParameters()
    unused.watch(parameter for parameter in model.parameters() if parameter.requires_grad)
    for _ in range(2):
        model.zero_grad()
        loss = model(rank, world_size)
        unused.join(loss).backward()
        unused.drop_gradients()
    save(model, loss, f"{folder}/aligned.safetensors")


def run(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    share = PAIRS // world_size
    for name, negatives in NEGATIVES.items():
        model = DistributedDataParallel(Encoder(negatives))
        loss = model(slice(rank * share, (rank + 1) * share))
        loss.backward()
        save(model, loss, f"{folder}/{name}.safetensors")
    align(rank, world_size, folder)
    dist.destroy_process_group()


@pytest.mark.ddp
def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    run_ranks(tmp_path / "printed", run, 2, str(tmp_path))
    for name, negatives in NEGATIVES.items():
        single = Encoder(negatives)
        loss = single(slice(0, PAIRS))
        loss.backward()
        agree(load_file(tmp_path / f"{name}.safetensors"), single, loss)
    aligned = Alignment()
    loss = aligned(0, 1)
    loss.backward()
    agree(load_file(tmp_path / "aligned.safetensors"), aligned, loss)


def agree(result: dict[str, torch.Tensor], single: nn.Module, loss: torch.Tensor) -> None:
    """What one process leaves without a gradient has none in two, either."""
    assert result.pop("loss").item() == pytest.approx(loss.item(), rel=1e-6)
    expected = {name: p.grad for name, p in single.named_parameters() if p.grad is not None}
    assert expected and expected.keys() == result.keys()
    assert all(torch.allclose(result[name], expected[name], rtol=1e-5, atol=1e-7) for name in expected)
