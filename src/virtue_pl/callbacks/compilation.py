"""`CompileRegions`: torch.compile for chosen modules of a model."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from virtue_pl.types import VirtueError


class CompileRegions(Callback):
    """Callback that compiles modules in place before anything runs; names in checkpoints do not change.

    Nothing is compiled without it. Rows of many lengths are many shapes: with `dynamic` null torch compiles once more,
    for any size, when a second shape comes.

    Args:
        regions: names of modules in the root, such as fusion.backbone.model.language_model.layers; the modules of a
            list are compiled one by one, which costs one compilation for all that are alike.
        backend: torch's; "inductor" wants a C++ compiler on a CPU.
        dynamic: True, False, or None for torch's own choice.

    Example:
        >>> trainer = Trainer(callbacks=[CompileRegions(["fusion.backbone.model.visual.blocks"], dynamic=True)])
    """

    def __init__(self, regions: Sequence[str], backend: str = "inductor", dynamic: bool | None = None) -> None:
        self.regions = tuple(regions)
        self.backend = backend
        self.dynamic = dynamic
        self.compiled: set[int] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for module in (module for name in self.regions for module in find_modules(pl_module, name)):
            if id(module) not in self.compiled:
                module.compile(backend=self.backend, dynamic=self.dynamic)
                self.compiled.add(id(module))


def find_modules(root: nn.Module, name: str) -> list[nn.Module]:
    """Return the module of that name, or the modules of a list. Raises VirtueError, with the names there are."""
    found = root
    for depth, part in enumerate(parts := name.split(".")):
        children = dict(found.named_children())
        if part not in children:
            parent = ".".join(parts[:depth]) or type(root).__name__
            raise VirtueError(
                f"CompileRegions.regions: there is no {name}: {parent} has {', '.join(children) or 'no modules'}"
            )
        found = children[part]
    return list(found) if isinstance(found, nn.ModuleList) else [found]
