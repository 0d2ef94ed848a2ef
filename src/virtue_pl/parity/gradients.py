"""Comparison of gradients: the recorded contrastive step with adapters on the language model and a loss over pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from virtue_pl.checkpoints.adapter_folder import AdapterSettings, group_by_module, merge_weight
from virtue_pl.checkpoints.keys import adapter_name, from_published
from virtue_pl.checkpoints.tensor_files import read_file, read_json
from virtue_pl.engine.gradient_cache import FullBatch, FunctionEncoder, GradientCache
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.parity.golden import box_prompt, item, select_prefix
from virtue_pl.parity.hooks import batch_of
from virtue_pl.parity.result import ParityRow
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt

GRADIENTS = "golden_grads"
SETS = ("init", "perturbed")
STEPS: dict[str, FullBatch | GradientCache] = {"plain": FullBatch(), "cached": GradientCache(2)}


class AdaptedWeight(nn.Module):
    """Parametrization of a weight by an adapter, whose tensors are trained instead of the weight.

    Its parameters have the kinds' names.

    Example:
        >>> parts = {"lora_A": torch.ones(1, 2), "lora_B": torch.ones(3, 1)}
        >>> AdaptedWeight(parts, scale=0.5)(torch.zeros(3, 2))[0].tolist()
        [0.5, 0.5]
    """

    def __init__(self, parts: Mapping[str, Tensor], scale: float) -> None:
        super().__init__()
        for kind, part in parts.items():
            self.register_parameter(kind, nn.Parameter(part.clone()))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with the adapter merged into it; [rows, columns]."""
        return merge_weight(weight, dict(self.named_parameters()), self.scale)


@contextmanager
def with_adapters(
    model: nn.Module, modules: Mapping[str, Mapping[str, Tensor]], scale: float
) -> Iterator[dict[str, nn.Parameter]]:
    """Put adapters around the model's weights inside the `with`; gives their parameters by `module.kind`."""
    parameters: dict[str, nn.Parameter] = {}
    for name, parts in modules.items():
        around = AdaptedWeight(parts, scale).to(next(model.parameters()).device)
        register_parametrization(model.get_submodule(name), "weight", around)
        parameters |= {f"{name}.{kind}": parameter for kind, parameter in around.named_parameters()}
    try:
        yield parameters
    finally:
        for name in modules:
            remove_parametrizations(model.get_submodule(name), "weight", leave_parametrized=False)


def gradient_parity(
    model: EmbeddingModel, folder: Path, tolerance: float, relative: float, max_pixels: int = MAX_PIXELS
) -> Iterator[ParityRow]:
    """Compare embeddings, loss and gradients of each set of adapters, with the whole batch and gradient-cached.

    tolerance: of embeddings, absolute. relative: of the loss and the gradients.
    """
    content, tensors = read_json(folder / f"{GRADIENTS}.json"), read_file(folder / f"{GRADIENTS}.safetensors")
    settings = AdapterSettings.from_config(content["lora_config"], f"{folder / GRADIENTS}.json")
    queries, targets = pairs(folder, content["case"], max_pixels)
    for values in SETS:
        modules = group_by_module(select_prefix(tensors, f"adapter_{values}/"), str(folder / GRADIENTS))
        for step, cache in STEPS.items():
            with with_adapters(model, modules, settings.scale) as adapters:
                found = contrastive_step(
                    model,
                    cache,
                    (queries, targets),
                    content["case"]["temperature"],
                    trained_parameters(model, adapters),
                )
            yield from compare_step(
                f"gradients, {values}, {step}", found, recorded_step(content, tensors, values), (tolerance, relative)
            )


def pairs(
    folder: Path, case: Mapping[str, Any], max_pixels: int = MAX_PIXELS
) -> tuple[list[EmbeddingInput], list[EmbeddingInput]]:
    """Return the step's queries and targets."""
    rows = zip(case["query_texts"], case["images"], case["bboxes_1024"], strict=True)
    queries = [
        item(folder, text, image, VisualPrompt() if box is None else box_prompt(box), max_pixels)
        for text, image, box in rows
    ]
    return queries, [EmbeddingInput(text) for text in case["target_texts"]]


def trained_parameters(model: nn.Module, adapters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the parameters that the paper trains, by name: the adapters' and the connector's."""
    return {
        **adapters,
        **{name: parameter for name, parameter in model.named_parameters() if name.startswith("connector.")},
    }


def contrastive_step(
    model: EmbeddingModel,
    cache: FullBatch | GradientCache,
    inputs: Sequence[list[EmbeddingInput]],
    temperature: float,
    parameters: Mapping[str, nn.Parameter],
) -> dict[str, Tensor]:
    """Return embeddings (`qry`, `tgt`), the loss of queries over in-batch targets, and each parameter's gradient."""
    with torch.enable_grad():
        queries, targets = (cache(FunctionEncoder(model.encode), batch_of(model, rows)) for rows in inputs)
        loss = cross_entropy(queries @ targets.T / temperature, torch.arange(len(queries), device=queries.device))
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    found = {"qry": queries, "tgt": targets, "loss": loss, **dict(zip(parameters, gradients, strict=True))}
    return {name: value.detach().cpu() for name, value in found.items()}


def recorded_step(content: Mapping[str, Any], tensors: Mapping[str, Tensor], values: str) -> dict[str, Tensor]:
    """Return the recorded step under the names of `contrastive_step`. Raises VirtueError for an unknown tensor."""
    found = select_prefix(tensors, f"reps_{values}_rowwise/") | {
        "loss": torch.tensor(content[values]["rowwise"]["loss"])
    }
    for name, gradient in select_prefix(tensors, f"grad_{values}_rowwise/").items():
        adapter = adapter_name(name)
        ours = from_published(name) if adapter is None else f"{adapter.module}.{adapter.kind}"
        if ours is None:
            raise VirtueError(f"{GRADIENTS}: unknown tensor {name}, expected those of adapters and of the connector")
        found[ours] = gradient
    return found


def compare_step(
    case: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerances: tuple[float, float]
) -> Iterator[ParityRow]:
    """Compare embeddings by their largest difference, loss and gradients relative to the recorded ones.

    Raises VirtueError where the names differ.
    """
    tolerance, relative = tolerances
    if found.keys() != wanted.keys():
        raise VirtueError(
            f"{case}: {min(found.keys() ^ wanted.keys())} is trained here or recorded there, expected both for every"
            " tensor"
        )
    for name in ("qry", "tgt"):
        yield row(case, f"embedding ({name})", [(found[name], wanted[name])], 1.0, tolerance)
    yield row(case, "loss, relative", [(found["loss"], wanted["loss"])], wanted["loss"].abs().item(), relative)
    gradients = [name for name in wanted if name not in ("qry", "tgt", "loss")]
    largest_gradient = max(wanted[name].abs().max().item() for name in gradients)
    worst = max(
        (relative_row(case, name, found[name], wanted[name], largest_gradient, relative) for name in gradients),
        key=lambda row: row.difference,
    )
    yield ParityRow(
        case, f"{len(gradients)} gradients, relative; worst {worst.name}", worst.difference, worst.cosine, relative
    )


def relative_row(
    case: str, name: str, found: Tensor, wanted: Tensor, largest_gradient: float, tolerance: float
) -> ParityRow:
    """Compare a gradient relative to its own largest value.

    One that is zero, as lora_A's is at first, is compared relative to the largest value of all gradients.
    """
    scale = wanted.abs().max().item() or largest_gradient
    return row(case, name, [(found, wanted)], scale, tolerance)


def row(case: str, name: str, values: Sequence[tuple[Tensor, Tensor]], scale: float, tolerance: float) -> ParityRow:
    """Compare one pair of tensors, found and recorded, by their largest difference divided by `scale`."""
    ((found, wanted),) = values
    one, other = found.double().flatten(), wanted.double().flatten()
    return ParityRow(
        case, name, (one - other).abs().max().item() / scale, cosine_similarity(one, other, dim=0).item(), tolerance
    )
