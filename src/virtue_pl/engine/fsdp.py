"""FSDP2: what is trained lies in shards, one on each rank, and is whole only while it computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from virtue_pl.engine.collectives import with_unused_parameters
from virtue_pl.types import VirtueError


class Sharding:
    """A root that torch's `fully_shard` was applied to: its layers one by one, and the rest of what it trains at once.

    Layers are sharded with what is frozen in them, such as the weights under adapters. What is frozen elsewhere (a
    vision tower, the segmentation
    stream, the token embeddings) stays whole on every rank: it is read without gradients and has no optimizer states.
    So do trained scalars, which
    torch does not shard, and the few tensors in another precision than most; ranks average their gradients. What is
    sharded starts from every
    rank's own values, so ranks must have the same ones: equal weights, or an equal seed.

    Args:
        root: its `training_step` is what computes with its rest; `gather` before anything else does.
        layers: modules that are called one after another, each gathered while it computes.
        mesh: the ranks; of two dimensions the one called data_parallel.
    """

    def __init__(self, root: nn.Module, layers: Sequence[nn.Module], mesh: DeviceMesh) -> None:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self.root: Any = root
        self.layers: tuple[Any, ...] = tuple(layers)
        self.mesh = data_parallel(mesh)
        trained = [parameter for parameter in root.parameters() if parameter.requires_grad]
        in_layers = {parameter for layer in self.layers for parameter in layer.parameters()}
        self.whole = kept_whole([parameter for parameter in trained if parameter not in in_layers])
        frozen = {
            parameter for parameter in root.parameters() if not parameter.requires_grad and parameter not in in_layers
        }
        for layer in self.layers:
            whole = kept_whole([parameter for parameter in layer.parameters() if parameter.requires_grad])
            fully_shard(layer, mesh=self.mesh, ignored_params=set(whole))
            self.whole += whole
        for layer in self.layers:
            layer.register_forward_pre_hook(reach_back, prepend=True)
        fully_shard(root, mesh=self.mesh, ignored_params={*self.whole, *frozen})
        for method in ("training_step", "gather_parameters"):
            register_fsdp_forward_method(root, method)
        for parameter in self.whole:
            dist.broadcast(parameter.data, 0, group=self.mesh.get_group())
            parameter.register_post_accumulate_grad_hook(self.average)

    def gather(self) -> None:
        """Everything whole on every rank, until `release`: ranks may then compute as often as each wants to. Called
        through the root.
        """
        for layer in self.layers:
            layer.set_reshard_after_forward(False)
            layer.unshard()

    def release(self) -> None:
        """Sharded again."""
        for layer in self.layers:
            layer.set_reshard_after_forward(True)
            layer.reshard()
        self.root.reshard()

    def with_unused_parameters(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """See `distributed.with_unused_parameters`: of the rest, which is whole in a training step."""
        return with_unused_parameters(
            loss,
            (parameter for parameter in self.root.parameters() if parameter.requires_grad and not is_shard(parameter)),
        )

    def average(self, parameter: Tensor) -> None:
        """Averages the gradient of what is whole, as that of shards is."""
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad, group=self.mesh.get_group())
        parameter.grad /= self.mesh.size()

    def clip_norm(self, limit: float) -> None:
        """Scales all gradients so that the norm over all ranks' shards is at most `limit`."""
        shards = self.gradients(shard=True)
        total = (
            torch.stack([gradient.float().pow(2).sum() for gradient in shards]).sum()
            if shards
            else torch.zeros((), device=self.mesh.device_type)
        )
        dist.all_reduce(total, group=self.mesh.get_group())
        squares = [gradient.float().pow(2).sum() for gradient in self.gradients(shard=False)]
        norm = torch.stack([total, *squares]).sum().sqrt()
        for gradient in self.gradients():
            gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))

    def clip_value(self, limit: float) -> None:
        """Brings every gradient into [-limit, limit]."""
        for gradient in self.gradients():
            gradient.clamp_(-limit, limit)

    def gradients(self, shard: bool | None = None) -> list[Tensor]:
        """This rank's part of each gradient: of the shards, of what is whole, or of all."""
        found: Iterator[Tensor] = (parameter.grad for parameter in self.root.parameters() if parameter.grad is not None)
        return [local(gradient) for gradient in found if shard is None or is_shard(gradient) == shard]


def data_parallel(mesh: DeviceMesh) -> DeviceMesh:
    """The dimension of a mesh over which batches differ. Raises VirtueError where there is another that splits the
    model.
    """
    if mesh.ndim == 1:
        return mesh
    size = mesh.size((mesh.mesh_dim_names or ()).index("data_parallel"))
    if size != mesh.size():
        raise VirtueError(
            f"trainer.strategy splits layers among {mesh.size() // size} ranks, expected data_parallel alone:"
            f" set tensor_parallel_size: 1 and data_parallel_size: {mesh.size()}"
        )
    data: DeviceMesh = mesh["data_parallel"]
    return data


def reach_back(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Lets the gradient pass through a layer's input whatever the rows are, such as texts alone, whose embeddings are
    frozen.

    torch shards a layer again once its input has a gradient; if that depended on the rows, ranks would gather at
    different moments, and wait forever.
    """
    if torch.is_grad_enabled() and not inputs[0].requires_grad:
        inputs[0].requires_grad_()


def kept_whole(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Of these, which are trained together, those that torch does not shard: scalars, and those of another dtype than
    most numbers are.
    """
    numbers: dict[torch.dtype, int] = {}
    for parameter in parameters:
        numbers[parameter.dtype] = numbers.get(parameter.dtype, 0) + parameter.numel()
    most = max(numbers, key=lambda dtype: numbers[dtype], default=None)
    return [parameter for parameter in parameters if parameter.ndim == 0 or parameter.dtype != most]


def is_shard(tensor: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
