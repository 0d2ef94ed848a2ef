"""FSDP2: trained parameters lie in shards, one on each rank, and are gathered only while they compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from virtue_pl.engine.ranks.collectives import with_unused_parameters
from virtue_pl.types import VirtueError


class Sharding:
    """A root module after torch's `fully_shard`: layers are sharded one by one, other parameters together.

    Layers are sharded with their frozen parameters, such as the weights under adapters. Frozen parameters elsewhere (a
    vision tower, the segmentation stream, the token embeddings) stay whole on every rank: they are read without
    gradients and have no optimizer states. Trained scalars, which torch does not shard, and the few tensors in another
    precision than most stay whole, too; ranks average their gradients. Sharding starts from every rank's own values, so
    ranks must have the same ones: equal weights, or an equal seed.

    Args:
        root: its `training_step` computes with the rest of its parameters; `gather` before anything else does.
        layers: modules that are called one after another, each gathered while it computes.
        mesh: the ranks; of two dimensions the one called data_parallel.

    Example:
        >>> sharding = Sharding(model, model.sharded_layers(), model.device_mesh)  # doctest: +SKIP
        >>> model.gather_parameters()  # before validation
    """

    def __init__(self, root: nn.Module, layers: Sequence[nn.Module], mesh: DeviceMesh) -> None:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self.root: Any = root
        self.layers: tuple[Any, ...] = tuple(layers)
        self.mesh = data_parallel_mesh(mesh)
        trained = [parameter for parameter in root.parameters() if parameter.requires_grad]
        in_layers = {parameter for layer in self.layers for parameter in layer.parameters()}
        self.replicated = parameters_not_sharded([parameter for parameter in trained if parameter not in in_layers])
        frozen = {
            parameter for parameter in root.parameters() if not parameter.requires_grad and parameter not in in_layers
        }
        for layer in self.layers:
            replicated = parameters_not_sharded(
                [parameter for parameter in layer.parameters() if parameter.requires_grad]
            )
            fully_shard(layer, mesh=self.mesh, ignored_params=set(replicated))
            self.replicated += replicated
        for layer in self.layers:
            layer.register_forward_pre_hook(require_input_gradient, prepend=True)
        fully_shard(root, mesh=self.mesh, ignored_params={*self.replicated, *frozen})
        for method in ("training_step", "gather_parameters"):
            register_fsdp_forward_method(root, method)
        for parameter in self.replicated:
            dist.broadcast(parameter.data, 0, group=self.mesh.get_group())
            parameter.register_post_accumulate_grad_hook(self.average_gradient)

    def gather(self) -> None:
        """Gather all parameters on every rank until `release`, so that ranks may compute as often as each wants to.

        It is called through the root, whose own parameters torch gathers.
        """
        for layer in self.layers:
            layer.set_reshard_after_forward(False)
            layer.unshard()

    def release(self) -> None:
        """Shard all parameters again."""
        for layer in self.layers:
            layer.set_reshard_after_forward(True)
            layer.reshard()
        self.root.reshard()

    def with_unused_parameters(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return `loss` with a gradient of zero for unused parameters outside the layers (`collectives`)."""
        return with_unused_parameters(
            loss,
            (parameter for parameter in self.root.parameters() if parameter.requires_grad and not is_shard(parameter)),
        )

    def average_gradient(self, parameter: Tensor) -> None:
        """Average over ranks the gradient of a parameter that is not sharded, as FSDP2 does with those of shards."""
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad, group=self.mesh.get_group())
        parameter.grad /= self.mesh.size()

    def clip_norm(self, limit: float) -> None:
        """Scale all gradients so that their norm over all ranks' shards is at most `limit`."""
        norm = self.norm()
        for gradient in self.gradients():
            gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))

    def norm(self) -> Float[Tensor, ""]:
        """Return the norm of all gradients over all ranks' shards."""
        shards = self.gradients(shard=True)
        total = (
            torch.stack([gradient.float().pow(2).sum() for gradient in shards]).sum()
            if shards
            else torch.zeros((), device=self.mesh.device_type)
        )
        dist.all_reduce(total, group=self.mesh.get_group())
        squares = [gradient.float().pow(2).sum() for gradient in self.gradients(shard=False)]
        return torch.stack([total, *squares]).sum().sqrt()

    def clip_value(self, limit: float) -> None:
        """Clamp every gradient to [-limit, limit]."""
        for gradient in self.gradients():
            gradient.clamp_(-limit, limit)

    def gradients(self, shard: bool | None = None) -> list[Tensor]:
        """Return this rank's part of each gradient: of shards (True), of whole parameters (False), or of all."""
        found: Iterator[Tensor] = (parameter.grad for parameter in self.root.parameters() if parameter.grad is not None)
        return [local_tensor(gradient) for gradient in found if shard is None or is_shard(gradient) == shard]


def data_parallel_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Return the dimension of a mesh over which batches differ.

    Raises VirtueError for a mesh with another dimension, which splits the layers.
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


def require_input_gradient(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Let the gradient pass through a layer's input whatever the rows are, such as texts alone with frozen embeddings.

    torch shards a layer again once its input has a gradient; if that depended on the rows, ranks would gather at
    different moments, and wait forever. A forward pre-hook.
    """
    if torch.is_grad_enabled() and not inputs[0].requires_grad:
        inputs[0].requires_grad_()


def parameters_not_sharded(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters of a group that `fully_shard` cannot shard: scalars, and those of another dtype than most.

    "Most" is counted in numbers, not in tensors.
    """
    numbers: dict[torch.dtype, int] = {}
    for parameter in parameters:
        numbers[parameter.dtype] = numbers.get(parameter.dtype, 0) + parameter.numel()
    most = max(numbers, key=lambda dtype: numbers[dtype], default=None)
    return [parameter for parameter in parameters if parameter.ndim == 0 or parameter.dtype != most]


def is_shard(tensor: Tensor) -> bool:
    """Return whether a tensor is distributed over ranks."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor; one that is not sharded as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
