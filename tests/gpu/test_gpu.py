"""The tiny model on a GPU: equal to the CPU in float32, trained in bfloat16, resumed to the bit, and never waited for.

`make test-gpu` runs them; `VIRTUE_GPU_DEVICE=cpu make test-gpu` runs the same code where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fixtures.device_work import DeviceWork
from fixtures.gpu_runs import Batches, build_adapted, make_trainer, train_rank
from fixtures.rank_processes import run_ranks
from fixtures.tiny_virtue import make_image, pairs, tiny_virtue
from resume.training import hash_weights
from virtue_pl.callbacks import Throughput, throughput
from virtue_pl.embedder import Embedder
from virtue_pl.engine.estimation.devices import find_device
from virtue_pl.models.virtue import Virtue
from virtue_pl.types import EmbeddingInput, VisualPrompt

pytestmark = pytest.mark.gpu

LOSS, GRADIENT = 1e-4, 1e-3
"""Relative differences to the CPU in float32: of the loss, and of a gradient in its length."""
BFLOAT16_LOSS = 0.1
"""Relative difference of a bfloat16 step's loss to float32's: eight bits of mantissa, and logits ten times a cosine."""
EMBEDDING = 1e-4
"""Largest difference of a number of an embedding of length 1, in float32."""
READS_ON_A_CPU = 20
"""Where a CPU stands in: most reads of a step, those of tensors on the host among them, and one of AdamW a weight."""


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """Convolutions in float32; cuDNN takes TensorFloat-32 by default, with ten bits of mantissa."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def step(model: Virtue, device: torch.device, dtype: torch.dtype | None = None) -> tuple[float, dict[str, Any]]:
    """The loss and the gradients of a step, which are brought to the host."""
    model.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    batch = pairs(model, 6).to(device)
    model.to(device)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model.training_step(batch, 0)
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return loss.item(), {name: parameter.grad.float().cpu() for name, parameter in trained.items()}  # type: ignore[union-attr]


def test_a_step_is_that_of_the_cpu(device: torch.device) -> None:
    loss, gradients = step(build_adapted(), device)
    expected, on_cpu = step(build_adapted(), torch.device("cpu"))
    assert loss == pytest.approx(expected, rel=LOSS)
    assert set(gradients) == set(on_cpu)
    longest = max(float(gradient.norm()) for gradient in on_cpu.values())
    for name, gradient in on_cpu.items():
        difference = float((gradients[name] - gradient).norm())
        assert difference <= GRADIENT * float(gradient.norm()) + 1e-6 * longest, name


def test_a_step_in_bfloat16_trains(device: torch.device) -> None:
    expected, _ = step(build_adapted(), torch.device("cpu"))
    loss, gradients = step(build_adapted(), device, torch.bfloat16)
    assert loss == pytest.approx(expected, rel=BFLOAT16_LOSS)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    model = build_adapted()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    make_trainer(device, 2, precision="bf16-mixed").fit(model, Batches(model, 2))
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.detach().cpu(), before[name]) != parameter.requires_grad, name


class Losses(Callback):
    """Notes each step's loss, to the bit."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, *_: Any) -> None:
        self.found.append(outputs["loss"].item().hex())


def test_a_stopped_run_goes_on_to_the_bit(device: torch.device, tmp_path: Path) -> None:
    """With dropout in the adapters, whose masks a GPU's own generator draws."""

    def run(start: str | None) -> tuple[list[str], str]:
        seed_everything(7, verbose=False)
        model, losses = build_adapted(dropout=0.2), Losses()
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1, enable_version_counter=False)
        options = {"callbacks": [losses, saving], "enable_checkpointing": True, "deterministic": True}
        try:
            trainer = make_trainer(device, 4, precision="bf16-mixed", **options)
            data = Batches(model, 4)
            if start is not None:  # a list of batches knows no place within an epoch, as the project's own data does
                data.batches = data.batches[2:] + data.batches[:2]
            trainer.fit(model, data, ckpt_path=start, weights_only=True if start else None)
        finally:
            torch.use_deterministic_algorithms(False)
        return losses.found, hash_weights(model.cpu())

    whole, weights = run(None)
    again, resumed = run(str(tmp_path / "step=2.ckpt"))
    assert len(set(whole)) == 4 and again == whole[2:]
    assert resumed == weights


def test_embeddings_are_those_of_the_cpu(device: torch.device) -> None:
    box = VisualPrompt(boxes=torch.tensor([[0.1, 0.2, 0.6, 0.9]]))
    rows = [
        EmbeddingInput("which thing", (make_image(1),), box, ("1",)),
        EmbeddingInput("a text alone"),
        EmbeddingInput("the whole image", (make_image(2),), image_keys=("2",)),
    ]

    def encode(on: torch.device) -> torch.Tensor:
        embedder = Embedder(tiny_virtue(), on, batch_size=2)
        assert embedder.device.type == on.type
        inputs = embedder.collator.encoder_batch(rows).to(on)
        with torch.no_grad():
            whole = embedder.model.encode(inputs).float().cpu()
        image = make_image(1).permute(1, 2, 0).numpy()
        return torch.cat([whole, torch.as_tensor(embedder.encode("which thing", image, box)).float().cpu()])

    torch.testing.assert_close(encode(device), encode(torch.device("cpu")), atol=EMBEDDING, rtol=0)


@contextmanager
def nothing_waits(device: torch.device, weights: int) -> Iterator[None]:
    """Raise where the host waits for a GPU; on a CPU, count the reads that would. weights: trained tensors."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with DeviceWork() as done:
        yield
    assert done.reads.total() <= READS_ON_A_CPU + weights


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_step_never_waits_for_the_device(device: torch.device, dtype: torch.dtype | None) -> None:
    model = build_adapted(dropout=0.1).to(device)
    model.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    batch = pairs(model, 6).to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3)

    def take() -> None:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = model.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    take()  # constants are made on the device once, and kernels loaded
    with nothing_waits(device, len(trained)):
        take()


def test_the_log_has_utilisation_and_memory(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":
        monkeypatch.setattr(throughput, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    elif find_device(torch.cuda.get_device_name(device)) is None:
        pytest.skip(f"the peak of {torch.cuda.get_device_name(device)} is not in the table of devices")
    model = build_adapted()
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = make_trainer(device, 3, precision="bf16-mixed", logger=logger, callbacks=[Throughput()])
    trainer.fit(model, Batches(model, 3))
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {name: [one.value for one in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert len(found["train/mfu"]) == 3 and all(0 < used < 1 for used in found["train/mfu"])
    assert all(0 < peak < 139 for peak in found["train/peak_memory_gib"])


def test_two_ranks_hold_the_same_weights(device: torch.device, tmp_path: Path) -> None:
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    method = "spawn" if device.type == "cuda" else "fork"  # a process that has used a GPU cannot be forked
    run_ranks(tmp_path, train_rank, tmp_path, device.type, 2, method=method, seconds=300)
    one, other = ((tmp_path / f"weights{rank}.txt").read_text().split() for rank in range(2))
    assert one == other and one[1] != one[2]
    assert one[0] == ("nccl" if device.type == "cuda" else "gloo")
