"""Two real processes that hold the model in shards (FSDP2) give the loss and the gradients of one that holds it
whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from socket import socket

import pytest
import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing import spawn
from torch.utils.data import DataLoader

from fixtures.tiny_virtue import samples, tiny_virtue
from virtue_pl.adapters.lora import LoRA
from virtue_pl.engine.fsdp import data_parallel_mesh
from virtue_pl.engine.gradient_cache import FullBatch, GradientCache, halve_chunks
from virtue_pl.engine.module import load_weights
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.virtue import Virtue
from virtue_pl.types import PairBatch, RankingSample, VirtueError

CASES = {"dora": GradientCache(chunk_tokens=80), "full": GradientCache(3), "plain": FullBatch()}
LIMIT = 0.1


def model_of(case: str) -> Virtue:
    model = tiny_virtue(adapter=LoRA(dropout=0.0) if case == "dora" else None)
    model.loss = InfoNCELoss(0.1, learn_temperature=True)
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    return model


def batch_of(model: Virtue, rank: int, world_size: int) -> PairBatch:
    """Of two ranks the second has no query with an image, so that its connector has nothing to do, and texts of other
    lengths.
    """
    rows = samples(8)
    imaged = [row for row in rows if row.region is not None][:4]
    ordered = [*imaged, *(row for row in rows if row not in imaged)]
    share = len(ordered) // world_size
    return model.collator.collate_train(ordered[rank * share : (rank + 1) * share])


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone().contiguous()


def step(model: Virtue, batch: PairBatch) -> dict[str, Tensor]:
    """The loss, all gradients and, after they are clipped and applied, all trained weights."""
    torch.manual_seed(3)
    loss = model.training_step(batch, 0)
    loss.backward()
    found = {
        "loss": loss.detach().clone(),
        **{f"grad.{name}": whole(p.grad) for name, p in model.named_parameters() if p.grad is not None},
    }
    if model.sharding is not None:
        model.sharding.clip_norm(LIMIT)
    else:
        torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    return {**found, **{f"weight.{name}": whole(p) for name, p in model.named_parameters() if p.requires_grad}}


def sharded(case: str, mesh: DeviceMesh) -> Virtue:
    model = model_of(case)
    model.gradient_cache = CASES[case]
    model._device_mesh = mesh
    model.configure_model()
    model.configure_model()
    return model


def run(rank: int, world_size: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    mesh = init_device_mesh("cpu", (world_size, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    for case in sorted(CASES):
        model = sharded(case, mesh)
        batch = batch_of(model, rank, world_size)
        found = step(model, batch)
        model.on_validation_start()
        with torch.no_grad():
            embeddings = [model.encode(batch.targets) for _ in range(1 + rank)][-1]
        model.on_validation_end()
        found |= {f"again.{name}": tensor for name, tensor in step(model, batch).items()}
        for value in (found["loss"], found["again.loss"]):
            dist.all_reduce(value)
            value /= world_size
        if rank == 0:
            save_file({**found, "embeddings": embeddings.contiguous()}, f"{folder}/{case}.safetensors")
    dist.destroy_process_group()
    fit(rank, world_size, folder, port)


def fit(rank: int, world_size: int, folder: str, port: int) -> None:
    """By Lightning's strategy: two steps with a validation of which the second rank has more batches, and a checkpoint
    of one file.
    """
    address = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": world_size,
        "RANK": rank,
        "LOCAL_RANK": rank,
        "NODE_RANK": 0,
    }
    os.environ.update({name: str(value) for name, value in address.items()})
    model = model_of("dora")
    model.gradient_cache, model.evaluation_modes = GradientCache(3), ("box",)
    model.optimization = Optimization(1e-2, 0.1, 0, "constant")
    batch = batch_of(model, rank, world_size)
    ranked = [RankingSample(row.key, "t", row.query, (row.target,), {"hit@1": (0,)}, row.region) for row in samples(2)]
    validation = [model.collator.collate_eval(ranked)] * (1 + rank)
    strategy = ModelParallelStrategy(
        data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False
    )
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "devices": world_size,
            "strategy": strategy,
            "max_steps": 2,
            "gradient_clip_val": 0.1,
            "default_root_dir": folder,
        },
        **{
            "use_distributed_sampler": False,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        callbacks=[ModelCheckpoint(folder, save_last=True, every_n_train_steps=2)],
    )
    trainer.fit(model, DataLoader([batch] * 2, batch_size=None), DataLoader(validation, batch_size=None))
    model.on_test_start()
    with torch.no_grad():
        embeddings = model.eval().encode(batch.targets)
    if rank == 0:
        save_file({"embeddings": embeddings.contiguous()}, f"{folder}/fitted.safetensors")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(run, args=(2, str(folder), port), nprocs=2)
    return folder


@pytest.mark.ddp
@pytest.mark.parametrize("case", sorted(CASES))
def test_two_processes_with_shards_give_the_numbers_of_one(case: str, results: Path) -> None:
    found, model = load_file(results / f"{case}.safetensors"), model_of(case)
    batch = batch_of(model, 0, 1)
    expected = step(model, batch)
    with torch.no_grad():
        embeddings = model.encode(batch.targets.select(range(4)))
    expected |= {f"again.{name}": tensor for name, tensor in step(model, batch).items()}
    torch.testing.assert_close(found.pop("embeddings"), embeddings, rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys()
    assert any(name.startswith("grad.fusion.backbone") for name in found) and "grad.loss.log_temperature" in found
    assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-6)
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= 1e-5 * tensor.norm() + 1e-7, name


@pytest.mark.ddp
def test_a_checkpoint_of_shards_is_read_by_a_model_that_is_whole(results: Path) -> None:
    fresh, read = model_of("dora").eval(), model_of("dora").eval()
    load_weights(read, results / "last.ckpt", "")
    targets = batch_of(read, 0, 2).targets
    with torch.no_grad():
        embeddings, before = read.encode(targets), fresh.encode(targets)
    torch.testing.assert_close(
        load_file(results / "fitted.safetensors")["embeddings"], embeddings, rtol=1e-5, atol=1e-6
    )
    assert (embeddings - before).abs().max() > 1e-3


def mesh_of(data: int, tensor: int) -> DeviceMesh:
    """A mesh of numbers alone: no process is started."""
    ranks = torch.arange(data * tensor).reshape(data, tensor)
    return DeviceMesh("cpu", ranks, mesh_dim_names=("data_parallel", "tensor_parallel"), _init_backend=False, _rank=0)


def test_an_alignment_stage_on_several_ranks_is_refused() -> None:
    model = model_of("full")
    model.alignment_steps = 3
    model._device_mesh = mesh_of(2, 1)
    with pytest.raises(
        VirtueError, match="alignment_steps is 3, but the model is sharded over 2 processes, expected one: set it to 0"
    ):
        model.configure_model()


def test_ranks_that_split_layers_are_refused() -> None:
    mesh = mesh_of(2, 2)
    with pytest.raises(
        VirtueError,
        match=(
            "splits layers among 2 ranks, expected data_parallel alone: set tensor_parallel_size: 1 and"
            " data_parallel_size: 4"
        ),
    ):
        data_parallel_mesh(mesh)


@pytest.mark.parametrize(
    ("chunks", "number", "expected"),
    [
        ([[0, 1, 2], [3]], 2, [[0, 1, 2], [3]]),
        ([[0, 1, 2], [3]], 4, [[0], [1], [2], [3]]),
        ([[5], [1, 0, 2, 4]], 3, [[5], [1, 0], [2, 4]]),
        ([[0], [1]], 3, [[0], [1]]),
        ([], 0, []),
    ],
)
def test_the_fullest_chunks_are_halved_to_a_number(
    chunks: list[list[int]], number: int, expected: list[list[int]]
) -> None:
    assert halve_chunks(chunks, number) == expected


def test_without_a_mesh_nothing_is_sharded() -> None:
    model = model_of("dora")
    model.configure_model()
    assert model.sharding is None and type(model) is Virtue and not model.gradient_cache.equal_chunks
