"""Adapters on the language model: LoRA and DoRA, through peft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from virtue_pl.backbones.vlm.base import VLMBackbone
from virtue_pl.types import VirtueError


class LoRA:
    """Low-rank updates of linear maps of the language model, of which they alone are trained.

    With `dora` each map's length is learned apart. Sources: LoRA (arXiv 2106.09685), DoRA (arXiv 2402.09353). The
    defaults are the paper's. Only the language model is searched for targets, since modules of SAM and of vision towers
    are also named `q_proj` and the like.

    Args:
        rank: rank of an update.
        alpha: an update is multiplied by `alpha / rank`.
        dropout: dropout of an update's input, in training.
        targets: last names of the linear maps, each of which must exist.
        module: name of the backbone's module to search instead of its `language_model`, or None.
        dora: DoRA instead of LoRA.
        exact_dropout: drop as peft does, for twice the work: DoRA's dropout then also reaches the weight itself
            (`adapters.dora`), and the dropped elements are those that torch draws (`adapters.dropout`).

    Example:
        >>> adapter = LoRA(rank=8, alpha=64, targets=["q_proj", "v_proj"], dora=False)
        >>> adapter.config.r, adapter.config.use_dora
        (8, False)
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: int = 64,
        dropout: float = 0.1,
        targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"),
        module: str | None = None,
        dora: bool = True,
        exact_dropout: bool = False,
    ) -> None:
        from peft import LoraConfig

        if rank < 1:
            raise VirtueError(f"adapter.rank is {rank}, expected at least 1 (the paper: 8)")
        if not 0 <= dropout < 1:
            raise VirtueError(f"adapter.dropout is {dropout}, expected 0 or more, and less than 1 (the paper: 0.1)")
        self.targets = tuple(targets)
        self.module = module
        self.exact_dropout = exact_dropout
        self.config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=list(targets),
            use_dora=dora,
            init_lora_weights="gaussian",
        )

    def adapt(self, backbone: VLMBackbone) -> None:
        """Wrap the targets in adapters, in place, and freeze the rest of the language model; adapters are float32.

        Raises VirtueError where `module` or one of the targets is not found.
        """
        from peft import inject_adapter_in_model

        from virtue_pl.adapters.dora import fuse_adapters

        language_model = self.language_model(backbone)
        names = {
            name.rpartition(".")[2] for name, module in language_model.named_modules() if isinstance(module, nn.Linear)
        }
        missing = [target for target in self.targets if target not in names]
        if missing:
            searched = self.module or f"the language model of {type(backbone).__name__}"
            raise VirtueError(
                f"adapter.targets: there is no linear map {missing[0]!r} in {searched}, expected some of"
                f" {', '.join(sorted(names))}; or set the adapter to null"
            )
        language_model.requires_grad_(False)
        inject_adapter_in_model(self.config, language_model)
        if not self.exact_dropout:
            fuse_adapters(language_model)
        for parameter in language_model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
        backbone.train(backbone.training)  # adapters in layers that were frozen are trained

    def language_model(self, backbone: VLMBackbone) -> nn.Module:
        """Return the module to search for targets. Raises VirtueError where the backbone has no `module`."""
        if self.module is None:
            return backbone.language_model
        try:
            return backbone.get_submodule(self.module)
        except AttributeError as error:
            children = ", ".join(name for name, _ in backbone.named_children())
            raise VirtueError(
                f"adapter.module: {type(backbone).__name__} has no {self.module!r}, expected a module under {children},"
                " or null"
            ) from error


def adapter_layers(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module of `root` that is wrapped in adapters, behind its name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in root.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, root.get_submodule(name)
