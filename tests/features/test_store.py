"""Provenance of stored features: precision and format beside the networks'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from virtue_pl.features.store import FORMAT, INDEX, FeatureIndex, FeatureProvenance, is_stored, write_features
from virtue_pl.types import VirtueError

WANTED = FeatureProvenance("float32", {"vision": "a"}, "b", "32-true")
IMAGES = {"key": {"vision/0": torch.ones(2)}}


def test_another_precision_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "shard-0.safetensors"
    write_features(path, IMAGES, FeatureProvenance("float32", {"vision": "a"}, "b", "bf16-mixed"), 1.0)
    with pytest.raises(VirtueError, match="holds precision bf16-mixed, expected 32-true: delete the folder"):
        is_stored(path, WANTED)
    index = FeatureIndex.from_files(tmp_path, FeatureProvenance(None, {"vision": "a"}, "b"))
    assert index.check(tmp_path, {"vision": "a"}) == ("vision",), "a precision that nobody states is any"


def test_an_index_says_the_precision_of_its_files(tmp_path: Path) -> None:
    write_features(tmp_path / "shard-0.safetensors", IMAGES, WANTED, 1.0)
    FeatureIndex.from_files(tmp_path, WANTED).write(tmp_path)
    index = FeatureIndex.read(tmp_path)
    assert index.check(tmp_path, {"vision": "a"}, "32-true") == ("vision",)
    with pytest.raises(VirtueError, match="computed in precision 32-true, the trainer's is bf16-mixed: set trainer"):
        index.check(tmp_path, {"vision": "a"}, "bf16-mixed")


def test_files_of_an_earlier_format_are_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "shard-0.safetensors"
    making = json.dumps({"dtype": "float32", "streams": {"vision": "a"}, "shards": "b"})
    save_file(
        {"key/vision/0": torch.zeros(2)},
        path,
        {"format": "virtue_pl features 1", "making": making, "pictures": "1", "seconds": "1.0"},
    )
    assert not is_stored(path, WANTED) and FeatureIndex.from_files(tmp_path, WANTED).tars == ()
    write_features(path, IMAGES, WANTED, 1.0)
    assert is_stored(path, WANTED)


def test_an_index_of_an_earlier_format_names_the_mend(tmp_path: Path) -> None:
    index = {"dtype": "float32", "streams": {}, "shards": "b", "tars": [], "pictures": 0, "bytes": 0, "seconds": 0.0}
    (tmp_path / INDEX).write_text(json.dumps({**index, "finished": True, "format": "virtue_pl features 1"}))
    with pytest.raises(VirtueError, match=f"of format 'virtue_pl features 1', expected '{FORMAT}': run `lightning"):
        FeatureIndex.read(tmp_path)
