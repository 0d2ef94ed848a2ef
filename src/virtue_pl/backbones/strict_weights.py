"""Loading parts of a model from a published checkpoint, with no tensor missing and none left over."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from virtue_pl.types import VirtueError


def load_parts(
    parts: Mapping[str, nn.Module | nn.Parameter], state: Mapping[str, Tensor], source: str, model: str
) -> None:
    """Load each part from the tensors under its prefix; tensors under other prefixes are ignored.

    Raises VirtueError, which names `source` and the expected `model`, for a missing tensor, an unknown one, or one of
    another shape.
    """
    for prefix, part in parts.items():
        expected = (
            {prefix: part.data}
            if isinstance(part, nn.Parameter)
            else {prefix + name: tensor for name, tensor in part.state_dict().items()}
        )
        found = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        for name in sorted(expected.keys() ^ found.keys()):
            problem = "lacks" if name in expected else "has an unknown"
            raise VirtueError(
                f"weights: {source} {problem} {name}, expected the tensors of {model} at the sizes in the config"
            )
        for name, tensor in expected.items():
            if found[name].shape != tensor.shape:
                raise VirtueError(
                    f"weights: {name} in {source} is {list(found[name].shape)}, expected {list(tensor.shape)}: the"
                    " sizes in the config differ"
                )
            tensor.copy_(found[name])
