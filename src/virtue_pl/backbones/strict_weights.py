"""Filling parts of a model from a published checkpoint, tensor by tensor, with nothing missing and nothing left
over.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from virtue_pl.types import VirtueError


def fill(parts: Mapping[str, nn.Module | nn.Parameter], state: Mapping[str, Tensor], source: str, model: str) -> None:
    """Fills each part from the tensors under its prefix; other prefixes are other parts' business.

    Raises VirtueError, which names `source` and the expected `model`, for a tensor too many, too few or of another
    shape.
    """
    for prefix, part in parts.items():
        wanted = (
            {prefix: part.data}
            if isinstance(part, nn.Parameter)
            else {prefix + name: tensor for name, tensor in part.state_dict().items()}
        )
        found = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        for name in sorted(wanted.keys() ^ found.keys()):
            problem = "lacks" if name in wanted else "has an unknown"
            raise VirtueError(
                f"weights: {source} {problem} {name}, expected the tensors of {model} at the sizes in the config"
            )
        for name, tensor in wanted.items():
            if found[name].shape != tensor.shape:
                raise VirtueError(
                    f"weights: {name} in {source} is {list(found[name].shape)}, expected {list(tensor.shape)}: the"
                    " sizes in the config differ"
                )
            tensor.copy_(found[name])
