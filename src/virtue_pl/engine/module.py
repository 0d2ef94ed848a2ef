"""The base class of all LightningModules here: it runs alone or as a part, starts from weights, and can be frozen."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from virtue_pl.engine.checkpoint_io import write_whole_checkpoints
from virtue_pl.engine.finite import ReadBatches, check_gradients, check_scale
from virtue_pl.engine.fsdp import Sharding
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.engine.ranks.averages import RowAverages
from virtue_pl.engine.ranks.collectives import world_size
from virtue_pl.engine.ranks.unused_parameters import UnusedParameters
from virtue_pl.engine.step_seeds import StepSeeds, number_of_batch
from virtue_pl.engine.weight_files import load_pickled, load_safetensors
from virtue_pl.types import Collator, NoRows, VirtueError

LIGHTNING_ATTRIBUTES = frozenset(vars(LightningModule())) - frozenset(vars(torch.nn.Module()))
"""Names of a LightningModule's own attributes: its trainer and the like."""


class Passage:
    """The class that a frame of `finish_behind` says it belongs to; its constructor takes nothing.

    Lightning's `save_hyperparameters` walks the frames of constructors, of which each has a class, and collects their
    arguments.

    Example:
        >>> Passage()  # doctest: +ELLIPSIS
        <virtue_pl.engine.module.Passage object at 0x...>
    """

    def __init__(self) -> None:
        pass


def finish_behind(constructor: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor with `finish_construction` behind it, where it is the outermost one of its module."""

    @functools.wraps(constructor)
    def __init__(self: VirtueModule, *arguments: Any, **options: Any) -> None:
        __class__ = Passage  # noqa: F841
        constructor(self, *arguments, **options)
        if type(self).__init__ is __init__:
            self.finish_construction()

    return __init__


def pass_over_no_rows(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return an evaluation step that does nothing with the batch of a rank without rows."""

    @functools.wraps(step)
    def step_of_rows(self: VirtueModule, batch: Any, *arguments: Any, **options: Any) -> Any:
        return None if isinstance(batch, NoRows) else step(self, batch, *arguments, **options)

    return step_of_rows


class VirtueModule(LightningModule):
    """A LightningModule that is a part of a larger model, or the root of a run of its own.

    As a part it returns its outputs, and the root logs and optimises; `optimization` is only for running alone. Where
    the constructor ends, `weights` are loaded and what is `frozen` is frozen, whatever a subclass's constructor does.

    Args:
        optimization: the optimizer of a run in which this module is the root.
        weights: a checkpoint (`.ckpt`) or safetensors file to start from; it may hold a larger model, whose tensors for
            this part are found by `weights_prefix`.
        weights_prefix: such as "prompt_encoder." in a file of a larger model; "" for a file of this part alone.
        frozen: train nothing, and stay in eval mode.

    Example:
        >>> class Head(VirtueModule):
        ...     def __init__(self, frozen: bool = False) -> None:
        ...         super().__init__(frozen=frozen)
        ...         self.linear = nn.Linear(4, 2)
        >>> Head(frozen=True).train().training
        False
    """

    not_in_fingerprint = LIGHTNING_ATTRIBUTES | {
        *("_hparams", "_hparams_initial", "_hparams_name"),
        *("optimization", "weights", "weights_prefix", "frozen", "sharding", "step_seeds", "read_batches", "is_loaded"),
        *("unused_parameters", "averages", "in_progress_bar"),
    }
    """Names of attributes that outputs do not depend on (`features.fingerprints`)."""

    def __init__(
        self,
        optimization: Optimization | None = None,
        weights: str | Path | None = None,
        weights_prefix: str = "",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.optimization = optimization
        self.weights = weights
        self.weights_prefix = weights_prefix
        self.frozen = frozen
        self.sharding: Sharding | None = None
        self.step_seeds = StepSeeds()
        self.read_batches = ReadBatches()
        self.unused_parameters = UnusedParameters()
        self.averages = RowAverages()
        self.in_progress_bar: set[str] = set()
        self.is_loaded = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for step in {"validation_step", "test_step"} & vars(cls).keys():
            setattr(cls, step, pass_over_no_rows(vars(cls)[step]))
        if "__init__" in vars(cls):
            cls.__init__ = finish_behind(vars(cls)["__init__"])  # type: ignore[method-assign]

    def finish_construction(self) -> None:
        """Load and freeze where the constructor has not done so, and freeze what it built afterwards, too."""
        if not self.is_loaded:
            self.load_and_freeze()
        elif self.frozen:
            self.requires_grad_(False)
            self.eval()

    def load_and_freeze(self) -> None:
        """Load `weights`, and freeze.

        It is called when the constructor has returned; a constructor calls it itself where `weights` do not hold what
        it builds after that.
        """
        self.is_loaded = True
        if self.weights is not None:
            load_weights(self, self.weights, self.weights_prefix)
        if self.frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> VirtueModule:
        """Set training or eval mode; a frozen module stays in eval mode."""
        return super().train(mode and not self.frozen)

    @property
    def collator(self) -> Collator:
        """The collator of this module's batches when it is the root; VirtueError where it cannot run alone."""
        raise VirtueError(f"{type(self).__name__} cannot run alone")

    def configure_optimizers(self) -> Any:
        """Return Lightning's optimizer configuration.

        Raises VirtueError without `optimization`, and where the run has no end, which its schedule is drawn over.
        """
        if self.optimization is None:
            raise VirtueError(
                f"{type(self).__name__} has no `optimization`, expected one to train it with: give it `optimization`"
            )
        steps = self.trainer.estimated_stepping_batches
        return self.optimization.configure(self, sys.maxsize if steps == float("inf") else int(steps))

    def setup(self, stage: str) -> None:
        """Have the trainer write its checkpoints whole or not at all."""
        write_whole_checkpoints(self.trainer)

    def on_fit_start(self) -> None:
        """Set training mode, but for what is frozen: Lightning trains modules in the mode in which they come."""
        self.train()

    def on_train_start(self) -> None:
        """Fix the seed that the random numbers of all steps are drawn from, and watch what ranks use of the module."""
        self.step_seeds.begin()
        if world_size() > 1 and self.sharding is None:
            self.unused_parameters.watch(parameter for parameter in self.parameters() if parameter.requires_grad)

    def on_train_end(self) -> None:
        """Watch the parameters no longer."""
        self.unused_parameters.release()

    def backward(self, loss: Tensor, *arguments: Any, **options: Any) -> None:
        """Note the loss and compute the gradients; on several ranks parameters that it does not use take part, too."""
        self.read_batches.end(loss)
        super().backward(self.unused_parameters.join(loss), *arguments, **options)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the generators for this batch on this rank."""
        self.step_seeds.seed_batch(number_of_batch(self), self.global_rank)
        self.read_batches.begin(tuple(getattr(batch, "keys", ())))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the loss of a batch whose gradient is added to that of the next."""
        self.read_batches.end(outputs)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Raise VirtueError where a gradient is not finite.

        One that the precision's own scaler passes over is left to it, until its scale says that all are. Parameters
        that no rank has used are left without a gradient, as in one process.
        """
        self.unused_parameters.drop_gradients()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None:
            trained = ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)
            check_gradients(trained, self.global_step, self.read_batches)
        else:
            check_scale(scaler.get_scale(), self.global_step, self.read_batches)
        self.read_batches.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the seed of all steps into a checkpoint."""
        self.step_seeds.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the seed of a checkpoint."""
        self.step_seeds.load(checkpoint)

    def average(self, name: str, mean: Tensor, rows: int, prog_bar: bool = False) -> None:
        """Add the mean over a batch's rows to an average over an evaluation's, which is logged at its end.

        Lightning's own averages over ranks want rows on each of them, and round half a row down.
        """
        self.averages.add(name, mean, rows)
        if prog_bar:
            self.in_progress_bar.add(name)

    def log_averages(self) -> None:
        """Log the averages over the rows of all ranks. Every rank must call it."""
        for name, value in self.averages.compute(self.device).items():
            self.log(name, value, prog_bar=name in self.in_progress_bar)

    def on_validation_epoch_end(self) -> None:
        """Log what validation averages."""
        self.log_averages()

    def on_test_epoch_end(self) -> None:
        """Log what a test averages."""
        self.log_averages()

    def sharded_layers(self) -> Sequence[nn.Module]:
        """Return the layers that FSDP2 shards one by one; none by default."""
        return ()

    def configure_model(self) -> None:
        """Shard the trained parameters where the strategy is FSDP2 (`ModelParallelStrategy`), once.

        With other strategies it does nothing.
        """
        if self.device_mesh is not None and self.sharding is None:
            self.sharding = Sharding(self, self.sharded_layers(), self.device_mesh)

    def gather_parameters(self) -> None:
        """Gather sharded parameters before validation and the like: ranks may have different numbers of batches."""
        if self.sharding is not None:
            self.sharding.gather()

    def release_parameters(self) -> None:
        """Shard the parameters again."""
        if self.sharding is not None:
            self.sharding.release()

    def on_validation_start(self) -> None:
        """Gather sharded parameters."""
        self.gather_parameters()

    def on_validation_end(self) -> None:
        """Shard the parameters again."""
        self.release_parameters()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients as Lightning does; the norm of sharded ones is taken over all ranks."""
        if self.sharding is None or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            self.sharding.clip_value(gradient_clip_val)
        else:
            self.sharding.clip_norm(gradient_clip_val)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a checkpoint, which is read without unpickling code.

    Raises VirtueError where it is absent, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise VirtueError(f"weights: {path} is not there; train that part first, or change `weights`")
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    content = load_pickled(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise VirtueError(f"weights: {path} holds no tensors by name, expected a checkpoint (.ckpt) or safetensors")
    return dict(state)


def load_weights(module: torch.nn.Module, path: str | Path, prefix: str) -> None:
    """Fill every tensor of `module` from `path`. Raises VirtueError for a missing tensor or another shape."""
    found = {name[len(prefix) :]: tensor for name, tensor in read_weights(path).items() if name.startswith(prefix)}
    expected = module.state_dict()
    missing = [name for name in expected if name not in found]
    if missing:
        raise VirtueError(
            f"weights: {path} lacks {len(missing)} of {len(expected)} tensors under prefix {prefix!r}, e.g."
            f" {missing[0]}"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise VirtueError(
                f"weights: {name} in {path} is {list(found[name].shape)}, expected {list(tensor.shape)}: the sizes in"
                " the config differ"
            )
    module.load_state_dict({name: found[name] for name in expected})
