"""Published folders in and out: every file format, every place, and a strict account of every tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.tiny_release import published, release
from virtue_pl.checkpoints.export import export
from virtue_pl.checkpoints.keys import HEAD, same_tensors
from virtue_pl.checkpoints.pretrained import from_pretrained, read_release
from virtue_pl.checkpoints.write_published import SAM_NAME, write_published
from virtue_pl.models.virtue import Virtue
from virtue_pl.preprocessing.input_formatters import PublishedFormatter, VirtueFormatter
from virtue_pl.types import EmbeddingInput, VirtueError

SAM = f"{SAM_NAME}.pt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("release") / "model")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """Of the release and of SAM's checkpoint beside it, to be spoilt."""
    shutil.copytree(folder.parent, tmp_path / "release")
    return tmp_path / "release" / "model"


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_every_tensor_is_that_of_the_files_and_the_model_embeds(folder):
    model = from_pretrained(folder)
    assert isinstance(model, Virtue) and isinstance(model.formatter, PublishedFormatter) and not model.training
    assert model.formatter.num_segment_tokens == 4 and same_tensors(model.state_dict(), release().tensors)
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    with torch.no_grad():
        rows = model.encode(model.collator.encoder_batch([EmbeddingInput("a cat"), EmbeddingInput("a dog", (image,))]))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    assert not any(
        parameter.requires_grad for parameter in [*model.segmentation.parameters(), *model.prompt_encoder.parameters()]
    )


def test_shards_and_bins_and_newer_names_are_the_same_model(folder, copy):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    newer = {
        f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1): value
        for name, value in tensors.items()
    }
    halves = {"a.safetensors": dict(list(newer.items())[::2]), "b.safetensors": dict(list(newer.items())[1::2])}
    for name, half in halves.items():
        save_file(half, copy / name)
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, half in halves.items() for key in half}}))
    assert same_tensors(read_release(copy).tensors, read_release(folder).tensors)
    index.unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    assert same_tensors(read_release(copy).tensors, read_release(folder).tensors)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/elsewhere/other.safetensors"])
def test_a_shard_outside_of_the_folder_is_not_read(copy, shard):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(VirtueError, match=r"expected a file beside it"):
        read_release(copy)


def test_the_head_that_predicts_words_is_kept_beside(copy):
    change_weights(copy, lambda tensors: tensors.update({HEAD: torch.randn(480, 64)}))
    found = read_release(copy)
    assert HEAD in found.left_out and HEAD not in found.tensors
    found.build()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            r"lacks 1 tensor, e.g. model.layers.1.mlp.up_proj.weight: expected exactly",
        ),
        (
            lambda t: t.update({"model.layers.9.mlp.up_proj.weight": torch.zeros(2)}),
            r"has a surplus of 1 tensor, e.g. model.layers.9.mlp.up_proj.weight",
        ),
        (
            lambda t: t.update({"score.weight": torch.zeros(2)}),
            r"has an unknown tensor score.weight, expected those of a Qwen2-VL",
        ),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight is \[3\], expected \[64\]"),
    ],
)
def test_every_tensor_is_accounted_for(copy, change, told):
    change_weights(copy, change)
    with pytest.raises(VirtueError, match=told) as caught:
        from_pretrained(copy)
    assert "\n" not in str(caught.value)


def test_another_models_folder_is_one_line(copy, tmp_path):
    change_config(copy, model_type="llava")
    with pytest.raises(VirtueError, match=r"model_type 'llava', expected 'qwen2_vl'"):
        from_pretrained(copy)
    change_config(copy, model_type="qwen2_vl", virtue_sam=None)
    with pytest.raises(VirtueError, match=r"has no entry 'virtue_sam', expected a release of VIRTUE"):
        from_pretrained(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VirtueError, match=r"holds nothing, expected virtue.yaml"):
        from_pretrained(tmp_path / "empty")


def test_a_hub_name_without_network_is_one_line():
    with pytest.raises(
        VirtueError, match=r"nobody/no-such-model is no folder here, and cannot be fetched from"
    ) as caught:
        from_pretrained("nobody/no-such-model")
    assert "\n" not in str(caught.value)
    with pytest.raises(VirtueError, match=r"is no folder, expected one with a model"):
        from_pretrained("./nowhere")


def test_sams_checkpoint_is_found_beside_in_it_and_where_it_is_said(folder, copy, tmp_path):
    wanted = read_release(folder).tensors
    for suffix in (".pt", ".yaml"):
        shutil.move(copy.parent / f"{SAM_NAME}{suffix}", copy / f"{SAM_NAME}{suffix}")
    assert same_tensors(read_release(copy).tensors, wanted)
    (tmp_path / "elsewhere").mkdir()
    for suffix in (".pt", ".yaml"):
        shutil.move(copy / f"{SAM_NAME}{suffix}", tmp_path / "elsewhere" / f"{SAM_NAME}{suffix}")
    with pytest.raises(
        VirtueError, match=f"SAM's checkpoint {SAM} is not there .* give the file by `--sam-checkpoint`"
    ):
        from_pretrained(copy)
    for given in (tmp_path / "elsewhere", tmp_path / "elsewhere" / SAM):
        assert same_tensors(read_release(copy, given).tensors, wanted)


def test_a_sam_of_another_size_is_one_line(copy, tmp_path):
    write_published(release(width=32), tmp_path / "wide", "random")
    with pytest.raises(
        VirtueError,
        match=r"is a SAM 2.1 of width 32, 7 blocks, embed_dim 64, expected width 16, 7 blocks, embed_dim 64",
    ):
        from_pretrained(copy, tmp_path / "wide" / SAM)


def test_a_formatter_that_contradicts_the_weights_is_one_line(folder):
    assert isinstance(from_pretrained(folder, formatter="published").formatter, PublishedFormatter)
    with pytest.raises(
        VirtueError,
        match=(
            r"formatter is 'virtue', but the weights of .* were trained with PublishedFormatter: leave `formatter` out"
        ),
    ):
        from_pretrained(folder, formatter="virtue")
    with pytest.raises(VirtueError, match=r"num_segment_tokens is 256, expected 4"):
        from_pretrained(folder, formatter=PublishedFormatter())
    assert isinstance(from_pretrained(folder, formatter=VirtueFormatter()).formatter, VirtueFormatter)


def test_there_and_back_bit_for_bit(copy, tmp_path):
    """Published to ours to published, in bfloat16, with the head and SAM's memory."""
    half = {name: value.bfloat16() for name, value in load_file(copy / "model.safetensors").items()}
    save_file({**half, HEAD: torch.randn(480, 64).bfloat16()}, copy / "model.safetensors")
    export(copy, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "again", layout="published")
    assert same_tensors(load_file(tmp_path / "again" / "model.safetensors"), load_file(copy / "model.safetensors"))
    both = [torch.load(path, weights_only=True)["model"] for path in (copy.parent / SAM, tmp_path / "again" / SAM)]
    assert same_tensors(*both)
    first, second = (
        torch.load(path / "sam2_reducer_and_vlm_layer.pth", weights_only=True) for path in (copy, tmp_path / "again")
    )
    assert first.keys() == second.keys() and all(same_tensors(first[part], second[part]) for part in first)
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (copy / "config.json").read_text()
    )
    export(tmp_path / "again", tmp_path / "ours_again")
    assert (tmp_path / "ours_again" / "model.safetensors").read_bytes() == (
        tmp_path / "ours" / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "ours_again" / "virtue.yaml").read_bytes() == (tmp_path / "ours" / "virtue.yaml").read_bytes()


def test_a_file_with_code_in_it_is_refused(copy):
    torch.save({"sam2_reducer": Path}, copy / "sam2_reducer_and_vlm_layer.pth")
    with pytest.raises(VirtueError, match=r"holds more than tensors and plain values, and is not read"):
        from_pretrained(copy)
