"""Runs with adapters as folders: as they are, merged, and in the published layout, which holds none."""

from __future__ import annotations

import json
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2VLModel

from fixtures.recorded import GOLDEN
from fixtures.tiny_release import release, run_checkpoint
from fixtures.tiny_vlms import save_smolvlm
from virtue_pl.adapters.lora import adapter_layers
from virtue_pl.checkpoints.adapter_folder import AdapterSettings, merge, read_adapters, target_modules
from virtue_pl.checkpoints.export import export
from virtue_pl.checkpoints.keys import LANGUAGE, adapter_name, same_tensors
from virtue_pl.checkpoints.pretrained import from_pretrained, read_release
from virtue_pl.checkpoints.published import part
from virtue_pl.cli.commands import export as command
from virtue_pl.embedder import Embedder
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt


def adapter(dora: bool) -> dict[str, Any]:
    return part(
        "virtue_pl.adapters.LoRA", rank=2, alpha=6, dropout=0.1, targets=["q_proj", "down_proj"], module=None, dora=dora
    )


def virtue(dora: bool, folder: Path) -> dict[str, Any]:
    spec: Any = release().spec
    settings = spec["init_args"]["fusion"]["init_args"]
    settings["backbone"]["init_args"]["vlm_model"] = str(release().folder)
    settings["adapter"] = adapter(dora)
    return spec


def smolvlm(dora: bool, folder: Path) -> dict[str, Any]:
    backbone = part("virtue_pl.backbones.SmolVLMBackbone", vlm_model=str(save_smolvlm(folder / "smolvlm")))
    pooling = part("virtue_pl.backbones.LastTokenPooling")
    return part("virtue_pl.models.VLMFusionHead", backbone=backbone, pooling=pooling, adapter=adapter(dora))


def embedding_inputs() -> list[EmbeddingInput]:
    image = torch.randint(0, 256, (3, 60, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    box = VisualPrompt.from_pixels(boxes=[[5, 5, 40, 50]], size=(60, 90))
    return [EmbeddingInput("a cat"), EmbeddingInput("what is it", (image,), box)]


def embeddings(folder: Path) -> torch.Tensor:
    model = from_pretrained(folder)
    with torch.no_grad():
        return model.encode(model.collator.encoder_batch(embedding_inputs()))


@pytest.mark.parametrize("dora", [True, False], ids=["dora", "lora"])
@pytest.mark.parametrize("build", [virtue, smolvlm], ids=["virtue", "smolvlm"])
def test_adapters_come_through_bit_for_bit_and_merged_they_embed_alike(build, dora, tmp_path):
    checkpoint = run_checkpoint(tmp_path / "run", build(dora, tmp_path))
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert sum("lora_" in name for name in state) == 3 * 2 * (3 if dora else 2)
    export(checkpoint, tmp_path / "adapted")
    model = from_pretrained(tmp_path / "adapted")
    if build is virtue:  # a fixed temperature is its argument's
        state["loss.log_temperature"] = torch.tensor(model.loss.temperature.item()).log()
    assert same_tensors(model.state_dict(), state) and len(list(adapter_layers(model))) == 6
    export(tmp_path / "adapted", tmp_path / "again")
    for name in ("model.safetensors", "virtue.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapted" / name).read_bytes()
    export(tmp_path / "adapted", tmp_path / "merged", merge_adapters=True)
    assert not any("lora_" in name or "base_layer" in name for name in read_release(tmp_path / "merged").tensors)
    expected, merged = embeddings(tmp_path / "adapted"), embeddings(tmp_path / "merged")
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=0)
    half = Embedder.from_pretrained(tmp_path / "adapted", device="cpu", dtype="bfloat16").embed(embedding_inputs())
    assert (half * expected).sum(dim=1).min() > 0.99


def test_the_published_layout_holds_none_and_says_so(tmp_path):
    checkpoint = run_checkpoint(tmp_path / "run", virtue(True, tmp_path))
    with pytest.raises(
        VirtueError, match=r"last\.ckpt has adapters, expected none in the published layout: add `--merge-adapters`"
    ):
        command.main([str(checkpoint), "--out", str(tmp_path / "published"), "--layout", "published"])
    assert not (tmp_path / "published").exists()
    assert (
        command.main(
            [str(checkpoint), "--out", str(tmp_path / "published"), "--layout", "published", "--merge-adapters"]
        )
        == 0
    )
    merged = read_release(tmp_path / "published").tensors
    assert merged.keys() == release().tensors.keys()


PLAIN = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
EVERY_SETTING: dict[str, list[Any]] = {
    "task_type": ["FEATURE_EXTRACTION"],
    "peft_type": ["LOHA"],
    "auto_mapping": [{"base_model_class": "Qwen2VLModel", "parent_library": "transformers"}],
    "peft_version": ["0.1.0"],
    "base_model_name_or_path": ["Qwen/Qwen2-VL-2B-Instruct"],
    "revision": ["main"],
    "inference_mode": [True],
    "r": [3],
    "target_modules": [["q_proj"], ["layers.1.self_attn.q_proj", "v_proj"], ".*q_proj", "all-linear", []],
    "exclude_modules": [["down_proj"]],
    "lora_alpha": [5, 2.5, -3],
    "lora_dropout": [0.3],
    "fan_in_fan_out": [True],
    "bias": ["all", "lora_only"],
    "use_rslora": [True],
    "modules_to_save": [["norm"]],
    "init_lora_weights": [
        *(True, "gaussian", "orthogonal", "eva"),
        *("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica", "of tomorrow"),
    ],
    "layers_to_transform": [[0], 1],
    "layers_pattern": ["layers"],
    "rank_pattern": [{"q_proj": 2}],
    "alpha_pattern": [{"q_proj": 3}],
    "megatron_config": [{"sequence_parallel": True}],
    "megatron_core": ["another.core"],
    "trainable_token_indices": [[1, 2], {"embed_tokens": [1]}],
    "loftq_config": [{"loftq_bits": 2}],
    "eva_config": [{"rho": 3.0}],
    "corda_config": [{"corda_method": "kpm"}],
    "lora_ga_config": [{"direction": "random"}],
    "use_dora": [True],
    "velora_config": [{"num_groups": 4}],
    "alora_invocation_tokens": [[1, 2]],
    "use_qalora": [True],
    "qalora_group_size": [8],
    "monteclora_config": [{"num_samples": 2}],
    "layer_replication": [[[0, 2], [1, 3]]],
    "runtime_config": [{"ephemeral_gpu_offload": True}],
    "lora_bias": [True],
    "target_parameters": [["self_attn.q_proj.weight"]],
    "use_bdlora": [{"nblocks": 2}],
    "arrow_config": [{"top_k": 2}],
    "kasa_config": [{"beta": 0.1}],
    "ensure_weight_tying": [True],
}
"""Values other than the default of every field of peft's LoraConfig."""
SEVERAL: list[dict[str, Any]] = [
    {"use_dora": True, "use_rslora": True},
    {"use_dora": True, "init_lora_weights": "gaussian"},
    {"use_dora": True, "init_lora_weights": "pissa"},
    {"use_rslora": True, "init_lora_weights": "olora"},
    {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
    {"of_tomorrow": "a value"},
]
CHANGES = [{name: value} for name, values in EVERY_SETTING.items() for value in values] + SEVERAL


def save_adapters(folder: Path, config: LoraConfig) -> None:
    """Adapters of random values, as peft saves them after a training."""
    model = get_peft_model(Qwen2VLModel.from_pretrained(GOLDEN / "qwen2_vl"), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)


def merged_by_peft(folder: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(Qwen2VLModel.from_pretrained(GOLDEN / "qwen2_vl"), folder).merge_and_unload()
    return {LANGUAGE + name: value for name, value in model.language_model.state_dict().items()}


def merged_here(folder: Path) -> dict[str, torch.Tensor]:
    plain = Qwen2VLModel.from_pretrained(GOLDEN / "qwen2_vl").language_model.state_dict()
    tensors, adapters = {LANGUAGE + name: value for name, value in plain.items()}, read_adapters(folder)
    return merge(adapters, tensors, target_modules(tensors, adapters.settings.targets), str(folder))


def test_every_setting_of_peft_is_tried():
    """Another version of peft may have more: what they do to a merged weight is to be found out."""
    assert EVERY_SETTING.keys() == {field.name for field in fields(LoraConfig)}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_merged_weight_is_that_of_peft_or_the_setting_is_refused(change, tmp_path):
    stated = {**json.loads(json.dumps(LoraConfig(**PLAIN).to_dict(), default=list)), **change}
    try:
        AdapterSettings.from_config(stated, "adapter_config.json")
    except VirtueError as error:
        assert any(
            f"adapter_config.json: {name} is {value!r}, expected " in str(error) for name, value in change.items()
        )
        return
    assert change.keys().isdisjoint({"peft_type", "of_tomorrow"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft, about settings that change nothing
        save_adapters(tmp_path, LoraConfig(**{**PLAIN, **change}))
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        wanted = merged_by_peft(tmp_path)
    found = merged_here(tmp_path)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=2e-6, rtol=0)
    plain = release().tensors
    assert any(not torch.allclose(value, plain[name], atol=1e-3) for name, value in found.items() if name in plain)


@pytest.mark.parametrize("initialisation", ["pissa", "olora"])
def test_adapters_that_took_their_start_out_of_the_weights_are_no_plain_ones(initialisation, tmp_path):
    """What a merge of them as plain adapters would give: the reason for which they are refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_adapters(tmp_path, LoraConfig(**{**PLAIN, "init_lora_weights": initialisation}))
        wanted = merged_by_peft(tmp_path)
    with pytest.raises(
        VirtueError, match=f"init_lora_weights is '{initialisation}', expected one that leaves the model's own"
    ):
        read_adapters(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": True}))
    assert max((merged_here(tmp_path)[name] - value).abs().max() for name, value in wanted.items()) > 0.1


def test_a_bias_of_an_adapter_is_no_matrix_of_it():
    module = "base_model.model.language_model.layers.0.self_attn.q_proj"
    assert adapter_name(f"{module}.lora_B.weight") == adapter_name(f"{module}.lora_B.default.weight")
    assert adapter_name(f"{module}.lora_B.bias") is None and adapter_name(f"{module}.lora_B.default.bias") is None
