"""Cases of other kinds than the recorded ones, worked out with transformers' own models and put together by hand,
through `virtue-pl parity`.

Other sizes, another tokenizer, images of extreme shapes, grids of other sides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms
from transformers import (
    AutoTokenizer,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)
from transformers.models.sam2 import modeling_sam2

from fixtures.recorded import GOLDEN
from fixtures.tiny_release import SIZES
from fixtures.tiny_vlms import save_qwen2_vl
from virtue_pl.backbones.segmentation.sam2_weights import read_sam2
from virtue_pl.checkpoints.published import published_spec
from virtue_pl.checkpoints.release import OWN_CLASSES, CheckpointSpec, instantiate
from virtue_pl.checkpoints.write_published import SAM_NAME, write_published
from virtue_pl.cli.commands import parity

CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
STRIDE = 4
"""Of the connector."""


class Kind(NamedTuple):
    """A release: whose tokenizer, sizes of its SAM 2, size of its grid."""

    tokenizer: str
    sizes: dict[str, Any]
    grid_size: int


KINDS = {
    "grid 1, other tokenizer": Kind("bytes", {"width": 32, "embed_dim": 32, "image_size": 256}, 1),
    "grid 5, other blocks": Kind("recorded", {"blocks": [1, 2, 4, 2], "global_attention": [5]}, 5),
}
POINTED: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "line_across": ((1, 200), {"point": [700.0, 100.0]}),
    "line_down": ((2000, 10), {"bboxes": [[100.0, 20.0, 900.0, 300.0]]}),
    "no_prompt": ((90, 60), {}),
    "grows_across_shrinks_down": ((122, 184), {}),
    "a_side_of_27": ((90, 27), {"point": [300.0, 900.0]}),
    "a_side_of_28": ((28, 90), {"bboxes": [[10.0, 20.0, 900.0, 300.0]]}),
    "grid_of_2": ((60, 120), {"points_per_side": 2}),
    "tiny": ((3, 4), {"bboxes": [[0.0, 0.0, 1024.0, 1024.0]]}),
}
"""Height and width of an image, and what points at it."""


@pytest.fixture(scope="module", params=sorted(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, root = KINDS[request.param], tmp_path_factory.mktemp("stock")
    vlm = GOLDEN / "qwen2_vl" if kind.tokenizer == "recorded" else save_qwen2_vl(root / "vlm")
    torch.manual_seed(1)
    spec = published_spec(vlm, {"virtue_sam": {"points_per_side": kind.grid_size}}, {**SIZES, **kind.sizes}, STRIDE)
    model = instantiate(spec, vlm, (OWN_CLASSES,))
    for parameter in model.prompt_encoder.parameters():
        parameter.data.normal_(std=0.3)
    write_published(CheckpointSpec(vlm, spec, dict(model.state_dict())), root / "model", "random")
    record(root, Oracle(root / "model", {**SIZES, **kind.sizes}, kind.grid_size))
    return root


class Oracle:
    """The published computation on stock models, a row at a time."""

    def __init__(self, folder: Path, sizes: dict[str, Any], grid_size: int) -> None:
        tensors = load_file(folder / "model.safetensors")
        full = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, key_mapping={r"^visual": "model.visual", r"^model(?!\.(language|visual))": "model.language_model"}
        )
        self.vlm: Any = full.eval().model
        assert torch.equal(self.vlm.language_model.norm.weight, tensors["model.norm.weight"])
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(
            folder, min_pixels=4 * 28 * 28, max_pixels=1280 * 28 * 28
        )
        self.connector = torch.load(folder / "sam2_reducer_and_vlm_layer.pth", weights_only=True)
        self.sam, self.canvas, self.grid_size = stock_sam2(folder, sizes), sizes["image_size"], grid_size

    def row(self, text: str, image: Image.Image, pointed: dict[str, Any]) -> dict[str, torch.Tensor]:
        if min(image.size) < 28:
            image = image.resize((56, 56), Image.Resampling.BICUBIC)
        prepared = self.images(images=[image], return_tensors="pt")
        vision = self.vlm.get_image_features(**prepared).pooler_output[0]
        image_token_id = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        ids = torch.tensor(
            [[image_token_id] * len(vision) + self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        )
        embeds = self.vlm.language_model.embed_tokens(ids)
        embeds[0, : len(vision)] = vision
        segments = self.segment_tokens(image, prepared["image_grid_thw"][0].tolist(), pointed)
        count = segments.shape[1]
        positions = torch.cat([torch.zeros(count, dtype=torch.long), count + torch.arange(ids.shape[1])])
        sequence = torch.cat([segments, embeds], dim=1)
        output = self.vlm.language_model(
            inputs_embeds=sequence, position_ids=positions.expand(3, 1, -1), use_cache=False
        )
        return {"seg_tokens": segments, "embedding": functional.normalize(output.last_hidden_state[:, -1], dim=-1)}

    def segment_tokens(self, image: Image.Image, grid: list[int], pointed: dict[str, Any]) -> torch.Tensor:
        resized = image.resize((14 * grid[2], 14 * grid[1]), Image.Resampling.BICUBIC)
        pixels = transforms.normalize(torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255, *CLIP)
        pixels = transforms.normalize(transforms.resize(pixels, [self.canvas, self.canvas], antialias=True), *IMAGENET)
        level = self.sam.vision_encoder(pixels[None]).fpn_hidden_states[-1]
        level = level + self.sam.no_memory_embedding.reshape(1, -1, 1, 1)
        points, labels = self.points(pointed)
        sparse, dense = self.sam.prompt_encoder(points[None, None] * self.canvas / 1024, labels[None, None], None, None)
        decoder = self.sam.mask_decoder
        own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
        queries = torch.cat([own[None, None], sparse], dim=2)
        positions = self.sam.get_image_wide_positional_embeddings()
        _, keys = decoder.transformer(queries, level + dense, positions, attention_similarity=None)
        embedding = keys[:, 0].transpose(1, 2).reshape(level.shape)
        reduced = functional.conv2d(
            embedding, self.connector["sam2_reducer"]["weight"], self.connector["sam2_reducer"]["bias"], stride=STRIDE
        )
        first, second = (
            (self.connector["sam2vlm_layer"][f"{layer}.weight"], self.connector["sam2vlm_layer"][f"{layer}.bias"])
            for layer in (0, 2)
        )
        return functional.linear(
            functional.gelu(functional.linear(reduced.flatten(2).transpose(1, 2), *first)), *second
        )

    def points(self, pointed: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """On a canvas of 1024 pixels; the stock encoder adds the padding point. A box is its corners."""
        if "bboxes" in pointed:
            return torch.tensor(pointed["bboxes"][0]).reshape(2, 2), torch.tensor([2, 3])
        if "point" in pointed:
            return torch.tensor([pointed["point"]]), torch.tensor([1])
        grid_size = pointed.get("points_per_side", self.grid_size)
        points = [
            [(column + 0.5) / grid_size * 1024, (row + 0.5) / grid_size * 1024]
            for row in range(grid_size)
            for column in range(grid_size)
        ]
        return torch.tensor(points), torch.ones(grid_size * grid_size, dtype=torch.long)


def stock_sam2(folder: Path, sizes: dict[str, Any]) -> Any:
    """transformers' whole Sam2 with the tensors of SAM's checkpoint."""
    width, stages = sizes["width"], range(4)
    trunk = Sam2HieraDetConfig(
        hidden_size=width,
        num_attention_heads=sizes["num_heads"],
        blocks_per_stage=sizes["blocks"],
        embed_dim_per_stage=[width * 2**stage for stage in stages],
        num_attention_heads_per_stage=[sizes["num_heads"] * 2**stage for stage in stages],
        window_size_per_stage=sizes["windows"],
        global_attention_blocks=sizes["global_attention"],
        window_positional_embedding_background_size=sizes["position_grid"],
        image_size=[sizes["image_size"]] * 2,
    )
    dim, canvas = sizes["embed_dim"], sizes["image_size"]
    vision = Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=[width * 2**stage for stage in reversed(stages)],
        backbone_feature_sizes=[[canvas // step] * 2 for step in (4, 8, 16)],
        fpn_hidden_size=dim,
    )
    prompts, decoder = (
        Sam2PromptEncoderConfig(hidden_size=dim, image_size=canvas),
        Sam2MaskDecoderConfig(hidden_size=dim),
    )
    config = modeling_sam2.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    model = Sam2Model(config).eval()
    state = read_sam2(str(folder / f"{SAM_NAME}.pt"))
    missing, surplus = model.load_state_dict(state, strict=False)
    assert missing == ["shared_image_embedding.positional_embedding"] and not surplus
    model.shared_image_embedding.positional_embedding.copy_(
        state["prompt_encoder.shared_embedding.positional_embedding"]
    )
    return model


@torch.no_grad()
def record(folder: Path, oracle: Oracle) -> None:
    """The oracle's numbers in the format that parity reads."""
    (folder / "images").mkdir()
    cases, tensors = {}, {}
    for number, (name, (size, pointed)) in enumerate(POINTED.items()):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8))
        image.save(folder / "images" / f"{name}.png")
        text = f"\nWhat is it, the {number}th thing?"
        cases[name] = {"texts": [f"<|image_pad|>{text}"], "images": [f"images/{name}.png"], "compare": True, **pointed}
        tensors |= {f"{name}/{key}": value.contiguous() for key, value in oracle.row(text, image, pointed).items()}
    save_file(tensors, folder / "golden_forward.safetensors")
    (folder / "golden_forward.json").write_text(json.dumps({"cases": cases}))


def test_cases_of_every_kind_are_the_stock_models(folder, capsys):
    assert parity.main([str(folder)]) == 0
    assert f"{2 * len(POINTED)} of {2 * len(POINTED)} judged comparisons hold" in " ".join(
        capsys.readouterr().out.split()
    )
    found = load_file(folder / "golden_forward.safetensors")
    embeddings = torch.cat([found[f"{name}/embedding"] for name in POINTED])
    assert (torch.cdist(embeddings, embeddings) + torch.eye(len(POINTED))).min() > 1e-2, (
        "the cases are alike, so that equality says nothing"
    )


def test_a_grid_of_another_side_is_not(folder):
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "virtue_sam": {**config["virtue_sam"], "points_per_side": 4}}))
    assert parity.main([str(folder)]) == 1
    path.write_text(json.dumps(config))
