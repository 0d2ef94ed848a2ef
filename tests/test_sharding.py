"""Two real processes that hold the model in shards (FSDP2) give the loss and the gradients of one that holds it whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing import spawn

from tiny_virtue import samples, tiny_virtue
from virtue_pl.adapters import LoRA
from virtue_pl.gradient_cache import GradientCache, PlainStep, divided
from virtue_pl.parts.contrastive_loss import InfoNCELoss
from virtue_pl.sharding import data_parallel
from virtue_pl.types import PairBatch, VirtueError
from virtue_pl.virtue import Virtue

CASES = {"dora": GradientCache(chunk_tokens=80), "full": GradientCache(3), "plain": PlainStep()}
LIMIT = 0.1


def model_of(case: str) -> Virtue:
    model = tiny_virtue(adapter=LoRA(dropout=0.0) if case == "dora" else None)
    model.loss = InfoNCELoss(0.1, learn_temperature=True)
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    return model


def batch_of(model: Virtue, rank: int, world: int) -> PairBatch:
    """Of two ranks the second has no query with a picture, so that its connector has nothing to do, and texts of other lengths."""
    rows = samples(8)
    pictured = [row for row in rows if row.region is not None][:4]
    ordered = [*pictured, *(row for row in rows if row not in pictured)]
    share = len(ordered) // world
    return model.preprocess.train(ordered[rank * share : (rank + 1) * share])


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone().contiguous()


def step(model: Virtue, batch: PairBatch) -> dict[str, Tensor]:
    """The loss, all gradients and, after they are clipped and applied, all trained weights."""
    torch.manual_seed(3)
    loss = model.training_step(batch, 0)
    loss.backward()
    found = {"loss": loss.detach().clone(), **{f"grad.{name}": whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}}
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


def run(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    for case in sorted(CASES):
        model = sharded(case, mesh)
        batch = batch_of(model, rank, world)
        found = step(model, batch)
        model.on_validation_start()
        with torch.no_grad():
            embeddings = [model.encode(batch.targets) for _ in range(1 + rank)][-1]
        model.on_validation_end()
        found |= {f"again.{name}": tensor for name, tensor in step(model, batch).items()}
        for value in (found["loss"], found["again.loss"]):
            dist.all_reduce(value)
            value /= world
        if rank == 0:
            save_file({**found, "embeddings": embeddings.contiguous()}, f"{folder}/{case}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    spawn(run, args=(2, str(folder)), nprocs=2)
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
