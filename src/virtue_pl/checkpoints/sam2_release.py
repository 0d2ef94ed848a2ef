"""SAM 2.1's checkpoint of a published release: its path, its sizes and its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from torch import Tensor

from virtue_pl.checkpoints.keys import sam2_from_published
from virtue_pl.engine.weight_files import load_pickled
from virtue_pl.types import VirtueError

BASE_PLUS = {
    "width": 112,
    "num_heads": 2,
    "blocks": [2, 3, 16, 3],
    "global_attention": [12, 16, 20],
    "windows": [8, 4, 14, 7],
    "position_grid": [14, 14],
    "embed_dim": 256,
    "image_size": 1024,
}
"""Sizes of SAM 2.1 hiera-base-plus, as arguments of `Sam2Backbone`; a configuration file may leave them out."""
RELEASED: dict[str, dict[str, Any]] = {
    "sam2.1_hiera_t": {
        "width": 96,
        "num_heads": 1,
        "blocks": [1, 2, 7, 2],
        "global_attention": [5, 7, 9],
        "position_grid": [7, 7],
    },
    "sam2.1_hiera_s": {
        "width": 96,
        "num_heads": 1,
        "blocks": [1, 2, 11, 2],
        "global_attention": [7, 10, 13],
        "position_grid": [7, 7],
    },
    "sam2.1_hiera_b+": {},
    "sam2.1_hiera_l": {
        "width": 144,
        "blocks": [2, 6, 36, 4],
        "global_attention": [23, 33, 43],
        "windows": [8, 4, 16, 8],
        "position_grid": [7, 7],
    },
}
"""Sizes that differ from base-plus, by the name of the configuration file (SAM 2's own `configs/sam2.1`)."""
TRUNK_FIELDS = {
    "embed_dim": "width",
    "num_heads": "num_heads",
    "stages": "blocks",
    "global_att_blocks": "global_attention",
    "window_spec": "windows",
    "window_pos_embed_bkg_spatial_size": "position_grid",
}
"""Fields of a configuration file's `model.image_encoder.trunk`, and the arguments of `Sam2Backbone`."""


def find_checkpoint(folder: Path, settings: Mapping[str, Any], given: str | Path | None) -> Path:
    """Return SAM's checkpoint: the file `given` (or in the folder `given`), or the one that `virtue_sam` names.

    That one is looked for beside the release's folder and in it. Raises VirtueError where there is none.
    """
    named = PurePosixPath(str(settings.get("checkpoint", "")))
    candidates = (
        [Path(given), Path(given) / named.name]
        if given is not None
        else [*paths_near(folder, named), *paths_near(folder, PurePosixPath(named.name))]
    )
    for path in candidates:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in candidates) or "nowhere, since it names none"
    raise VirtueError(
        f"{folder / 'config.json'}: SAM's checkpoint {named} is not there (looked for {looked}): give the file by"
        " `--sam-checkpoint`"
    )


def paths_near(folder: Path, named: PurePosixPath) -> Iterator[Path]:
    """Yield the paths that a file of that name may have: beside the folder, or in it; never elsewhere."""
    for root in (folder.resolve().parent, folder.resolve()):
        path = (root / named).resolve()
        if path.is_relative_to(root):
            yield path


def read_sizes(folder: Path, settings: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return `Sam2Backbone`'s sizes by the configuration file that `virtue_sam` names.

    Of SAM 2's own files the name is enough. Raises VirtueError for any other that is not there.
    """
    named = PurePosixPath(str(settings.get("config_path", "")))
    roots = (folder.resolve().parent, folder.resolve(), folder.resolve().parent / "sam2", checkpoint.resolve().parent)
    for path in (root / name for root in roots for name in (named, named.name)):
        if path.is_file() and any(path.resolve().is_relative_to(root) for root in roots):
            return {**BASE_PLUS, **sizes_in(path)}
    if named.stem in RELEASED:
        return {**BASE_PLUS, **RELEASED[named.stem]}
    released = ", ".join(f"{name}.yaml" for name in RELEASED)
    raise VirtueError(
        f"{folder / 'config.json'}: SAM's config_path {named} is not there, expected that file beside {checkpoint}, or"
        f" one of {released}"
    )


def sizes_in(path: Path) -> dict[str, Any]:
    """Return the sizes that a SAM 2.1 configuration file states. Raises VirtueError for another file."""
    try:
        model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        trunk = model["image_encoder"]["trunk"]
        found = {ours: trunk[theirs] for theirs, ours in TRUNK_FIELDS.items() if theirs in trunk}
        found |= {"embed_dim": model["image_encoder"].get("neck", {}).get("d_model", BASE_PLUS["embed_dim"])}
        return found | {"image_size": model.get("image_size", BASE_PLUS["image_size"])}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise VirtueError(
            f"{path} is no configuration file of SAM 2.1, expected model.image_encoder.trunk with its sizes: {error}"
        ) from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the checkpoint's tensors under this package's names, and those that no embedding needs under their own."""
    state = load_pickled(path)
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
        raise VirtueError(
            f"{path} has no entry 'model', expected an original SAM 2.1 checkpoint: name it by `--sam-checkpoint`"
        )
    return sam2_from_published(state["model"])


def check_sizes(
    tensors: Mapping[str, Tensor], checkpoint: Path, sizes: Mapping[str, Any], connector_width: int
) -> None:
    """Raise VirtueError where the checkpoint has other sizes than the release states, or than its connector reads."""
    trunk = "segmentation.backbone.vision_encoder.backbone."
    numbers = {
        int(name.removeprefix(f"{trunk}blocks.").split(".")[0])
        for name in tensors
        if name.startswith(f"{trunk}blocks.")
    }
    width, dim = tensors.get(f"{trunk}pos_embed"), tensors.get("prompt_encoder.encoder.encoder.no_mask_embed.weight")
    found = (None if width is None else width.shape[1], len(numbers), None if dim is None else dim.shape[1])
    expected = (sizes["width"], sum(sizes["blocks"]), sizes["embed_dim"])
    if found != expected:
        said = [f"width {w}, {b} blocks, embed_dim {d}" for w, b, d in (found, expected)]
        raise VirtueError(
            f"{checkpoint} is a SAM 2.1 of {said[0]}, expected {said[1]} as the release's config_path says: change"
            " `--sam-checkpoint`"
        )
    if connector_width != sizes["embed_dim"]:
        raise VirtueError(
            f"{checkpoint} has embed_dim {sizes['embed_dim']}, expected {connector_width}, which the connector reads:"
            " change `--sam-checkpoint`"
        )
