"""What holds for every vision-language backbone, on the tiny model that `fixtures.tiny_vlms.TINY` names for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from fixtures.tiny_vlms import HIDDEN, TEXT, TINY
from virtue_pl.adapters.lora import LoRA, adapter_layers
from virtue_pl.backbones.vlm.causal import CausalVLM
from virtue_pl.backbones.vlm.llava_onevision import LlavaOnevisionBackbone
from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.preprocessing.input_formatters import VirtueFormatter
from virtue_pl.types import IMAGE_TOKEN, EmbeddingInput, EncoderBatch, SegmentTokens, VirtueError

NAMES = {path.rpartition(".")[2]: path for path in sorted(TINY)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlms")
    return {name: TINY[path](root / name) for name, path in NAMES.items()}


def load(name: str, folder: Path, **settings: Any) -> CausalVLM:
    module, _, backbone = NAMES[name].rpartition(".")
    return getattr(import_module(module), backbone)(str(folder), **settings).eval()


@pytest.fixture(scope="module", params=NAMES)
def backbone(request: pytest.FixtureRequest, folders: dict[str, Path]) -> CausalVLM:
    return load(request.param, folders[request.param])


@pytest.fixture
def head(backbone: CausalVLM) -> VLMFusionHead:
    return VLMFusionHead(backbone, LastTokenPooling()).eval()


def make_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def mixed() -> list[EmbeddingInput]:
    """No image, one, several, the same one again; wide and tall, large and small."""
    first, second, third = make_image(40, 70), make_image(110, 60, 1), make_image(30, 30, 2)
    return [
        EmbeddingInput(
            f"look at {IMAGE_TOKEN} and\n{IMAGE_TOKEN}{IMAGE_TOKEN} here",
            (first, second, third),
            image_keys=("1", "2", "3"),
        ),
        EmbeddingInput("a text"),
        EmbeddingInput("what is this, and where, and why is it here at all?", (second,), image_keys=("2",)),
        EmbeddingInput("", (third,), image_keys=("3",)),
        EmbeddingInput("both of them", (first, second), image_keys=("1", "2")),
    ]


def segments(batch: EncoderBatch, hidden: int) -> SegmentTokens:
    """Three tokens for each use of an image, which depend on the row's text and on the image alone."""
    counts = (batch.input_ids * batch.attention_mask).sum(dim=1)[batch.use_rows]
    shown = torch.stack([batch.images.vision[index].float().mean() for index in batch.prompts.image_index.tolist()])
    return SegmentTokens(
        torch.sin(torch.arange(1, 3 * hidden + 1) * (counts + shown)[:, None] / 1000).view(-1, 3, hidden)
    )


@pytest.mark.parametrize("with_segments", [False, True])
def test_an_embedding_does_not_depend_on_its_batch(head: VLMFusionHead, with_segments: bool) -> None:
    def encode(batch: EncoderBatch) -> torch.Tensor:
        given = segments(batch, head.hidden_size) if with_segments and len(batch.use_rows) else None
        return head(batch, given)

    collator = head.collator
    with torch.no_grad():
        batch = collator.encoder_batch(mixed())
        together = encode(batch)
        alone = torch.cat([encode(collator.encoder_batch([item])) for item in mixed()])
        chunks = torch.cat([encode(chunk) for chunk in batch.split(2)])
        backwards = encode(batch.select(range(len(batch) - 1, -1, -1))).flip(0)
    assert len(batch.images) == 3 and len(batch.use_rows) == 7
    for other in (alone, chunks, backwards):
        assert (together - other).abs().max() < 1e-5
    distances = torch.cdist(together, together) + torch.eye(len(together))
    assert distances.min() > 1e-2, "the rows are alike, so that equality says nothing"


def test_every_image_of_a_row_and_its_segment_tokens_are_read_in_order(head: VLMFusionHead) -> None:
    item = mixed()[4]
    batch = head.collator.encoder_batch([item])
    given = segments(batch, head.hidden_size)
    with torch.no_grad():
        as_given = head(batch, given)
        others = [
            head(batch, SegmentTokens(given.tokens.flip(0))),
            head(batch, SegmentTokens(torch.cat([given.tokens[:1], given.tokens[:1]]))),
            head(batch, SegmentTokens(torch.cat([given.tokens[1:], given.tokens[1:]]))),
            head(head.collator.encoder_batch([replace(item, images=item.images[::-1], image_keys=())]), given),
            head(batch),
        ]
    assert all((as_given - other).norm() > 1e-3 for other in others)


def qwen(processor: Any, video: Any) -> Callable[[Path], Any]:
    """The tower reads what Pillow resizes, as it was trained."""
    return lambda folder: processor(
        Qwen2VLImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), video()
    )


def smolvlm(folder: Path) -> Any:
    return SmolVLMProcessor(
        AutoImageProcessor.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        SmolVLMVideoProcessor(),
        image_seq_len=4,
    )


VISION = "<|vision_start|><|image_pad|><|vision_end|>"
STOCK: dict[str, tuple[Callable[[Path], Any], str]] = {
    "LlavaOnevisionBackbone": (
        AutoProcessor.from_pretrained,
        "<|im_start|>user <image>\nwhat is this?<|im_end|><|im_start|>assistant\n",
    ),
    "Qwen2VLBackbone": (
        qwen(Qwen2VLProcessor, Qwen2VLVideoProcessor),
        f"<|im_start|>user\n{VISION}what is this?<|im_end|>\n",
    ),
    "Qwen2_5VLBackbone": (
        qwen(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        f"<|im_start|>user\n{VISION}what is this?<|im_end|>\n",
    ),
    "Qwen3VLBackbone": (
        qwen(Qwen3VLProcessor, Qwen3VLVideoProcessor),
        f"<|im_start|>user\n{VISION}what is this?<|im_end|>\n",
    ),
    "SmolVLMBackbone": (smolvlm, "<|im_start|>User:<image>what is this?<end_of_utterance>\nAssistant:"),
}
"""The model's own processor, and a text in its own chat template."""


class Templated(VirtueFormatter):
    """Texts that hold the model's marks already."""

    def delimit_images(self, text: str, delimiters: tuple[str, str]) -> str:
        return text


@pytest.mark.parametrize("size", [(56, 84), (30, 120), (90, 61), (122, 184)], ids=str)
@pytest.mark.parametrize("name", STOCK)
def test_without_segment_tokens_it_is_the_stock_model(
    name: str, folders: dict[str, Path], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the model's own processor and its own forward."""
    # it is asked for, though only videos need it
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
    backbone = load(name, folders[name])
    make, text = STOCK[name]
    processor, image = make(folders[name]), make_image(*size)
    stock = processor(text=[text], images=[image], return_tensors="pt")
    head = VLMFusionHead(backbone, LastTokenPooling(), Templated(prompt_text=False))
    batch = head.collator.encoder_batch([EmbeddingInput(text.replace(processor.image_token, IMAGE_TOKEN), (image,))])
    assert torch.equal(batch.input_ids, stock["input_ids"])
    with torch.no_grad():
        expected = backbone.model(**stock, use_cache=False).last_hidden_state
        found = backbone(backbone.embed(batch, backbone.vision_tokens(head.frozen_features(batch.images))))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


SEVERAL = {
    "LlavaOnevisionBackbone": "<|im_start|>user <image>and <image>\nwhich is it?<|im_end|><|im_start|>assistant\n",
    "Qwen2VLBackbone": f"<|im_start|>user\n{VISION}and {VISION}which is it?<|im_end|>\n",
    "Qwen2_5VLBackbone": f"<|im_start|>user\n{VISION}and {VISION}which is it?<|im_end|>\n",
    "Qwen3VLBackbone": f"<|im_start|>user\n{VISION}and {VISION}which is it?<|im_end|>\n",
    "SmolVLMBackbone": "<|im_start|>User:<image>and <image>which is it?<end_of_utterance>\nAssistant:",
}


@pytest.mark.parametrize("name", SEVERAL)
def test_with_several_images_it_is_the_stock_model_too(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stock processor is told which images belong to one text: LLaVA-OneVision cuts none of several."""
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
    backbone, images = load(name, folders[name]), [make_image(56, 84), make_image(90, 61, 1)]
    processor, text = STOCK[name][0](folders[name]), SEVERAL[name]
    stock = processor(text=[text], images=[images], return_tensors="pt")
    head = VLMFusionHead(backbone, LastTokenPooling(), Templated(prompt_text=False))
    batch = head.collator.encoder_batch(
        [EmbeddingInput(text.replace(processor.image_token, IMAGE_TOKEN), tuple(images), image_keys=("1", "2"))]
    )
    assert torch.equal(batch.input_ids, stock["input_ids"])
    with torch.no_grad():
        expected = backbone.model(**stock, use_cache=False).last_hidden_state
        tokens = backbone.vision_tokens(head.frozen_features(batch.images))
        found = backbone(backbone.embed(batch, [tokens[index] for index in batch.use_image_index.tolist()]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_learns_are_the_language_models_layers(backbone: CausalVLM) -> None:
    learning = {name for name, parameter in backbone.model.named_parameters() if parameter.requires_grad}
    language = {name for name, _ in backbone.language_model.named_parameters() if not name.startswith("embed_tokens")}
    assert {name.partition("_model.")[2] for name in learning} == language
    assert not any("lm_head" in name for name, _ in backbone.named_parameters())
    images = VLMFusionHead(backbone, LastTokenPooling()).collator.collate_images([make_image(40, 40)])
    assert not any(level.requires_grad for levels in backbone.vision_features(images.vision) for level in levels)


LANGUAGE_MODEL = {name: "model.text_model." if name == "SmolVLMBackbone" else "model.language_model." for name in NAMES}
MAPS = ("mlp.down_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj")


@pytest.mark.parametrize("name", NAMES)
def test_adapters_reach_the_language_model_alone(name: str, folders: dict[str, Path]) -> None:
    """The towers have maps of these names, too. What was frozen stays so, and gives the features it gave."""
    backbone = load(name, folders[name])
    before = backbone.fingerprint()
    head = VLMFusionHead(backbone, LastTokenPooling(), adapter=LoRA())
    targets = [
        f"{LANGUAGE_MODEL[name]}layers.{layer}.{target}"
        for layer in range(TEXT["num_hidden_layers"])
        for target in MAPS
    ]
    assert sorted(module for module, _ in adapter_layers(backbone)) == targets
    learning = {parameter for parameter, value in backbone.named_parameters() if value.requires_grad}
    assert len(learning) == 3 * len(targets) and all(
        "lora_" in parameter and parameter.startswith(LANGUAGE_MODEL[name]) for parameter in learning
    )
    assert backbone.fingerprint() == before
    batch = head.collator.encoder_batch(mixed())
    (head.encode(batch) * torch.arange(HIDDEN)).sum().backward()
    assert all(value.grad is not None for parameter, value in backbone.named_parameters() if "lora_B" in parameter)


def test_the_fingerprint_is_the_towers(backbone: CausalVLM, folders: dict[str, Path]) -> None:
    name = type(backbone).__name__
    other = load(name, folders[name])
    assert other.fingerprint() == backbone.fingerprint()
    with torch.no_grad():
        other.language_model.norm.weight.add_(1)
        assert other.fingerprint() == backbone.fingerprint()
        next(parameter for parameter in other.parameters() if not parameter.requires_grad and parameter.ndim > 2).add_(
            1
        )
    assert other.fingerprint() != backbone.fingerprint()


PUBLISHED = {
    "LlavaOnevisionBackbone": {
        "language_model.": "language_model.model.",
        "vision_tower.": "vision_tower.vision_model.",
    },
    "Qwen2VLBackbone": {"language_model.": "model.", "visual.": "visual."},
    "Qwen2_5VLBackbone": {"language_model.": "model.", "visual.": "visual."},
    "Qwen3VLBackbone": {"": "model."},
    "SmolVLMBackbone": {"": "model."},
}
"""What the tensors' names start with in the released files (their indices on the hub), where it is not what
transformers' class calls them.
"""


def published_names(name: str, names: list[str]) -> dict[str, str]:
    """By the name in the class, the name in the file."""
    found = {}
    for tensor in names:
        prefix = next((prefix for prefix in PUBLISHED[name] if tensor.startswith(prefix)), None)
        found[tensor] = tensor if prefix is None else PUBLISHED[name][prefix] + tensor.removeprefix(prefix)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_found_under_their_published_names(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load(name, folders[name]).model.state_dict()
    for path in folders[name].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    names = published_names(name, list(tensors))
    save_file(
        {names[tensor]: value.clone() for tensor, value in tensors.items()},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    found = load(name, tmp_path).model.state_dict()
    assert found.keys() == tensors.keys() and all(
        torch.equal(found[tensor], value) for tensor, value in tensors.items()
    )


def test_what_is_missing_or_of_another_model_is_said_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match="is a smolvlm, expected a qwen3_vl: name another folder"):
        load("Qwen3VLBackbone", folders["SmolVLMBackbone"])
    with pytest.raises(VirtueError, match=r"the folder \./nowhere is not there, expected a llava_onevision"):
        LlavaOnevisionBackbone("./nowhere")
    tensors = load_file(folders["SmolVLMBackbone"] / "model.safetensors")
    for path in folders["SmolVLMBackbone"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    gone = next(tensor for tensor in tensors if "connector" in tensor)
    save_file(
        {tensor: value for tensor, value in tensors.items() if tensor != gone},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(VirtueError, match=r"lacks 1 tensors of a smolvlm, e\.g\. connector"):
        load("SmolVLMBackbone", tmp_path)


def test_a_text_may_not_hold_the_models_own_image_token(folders: dict[str, Path]) -> None:
    processor = load("SmolVLMBackbone", folders["SmolVLMBackbone"]).processor
    with pytest.raises(VirtueError, match="a text holds the model's own <image>"):
        processor.tokenize(["an <image> without an image"], [[]])


@pytest.mark.parametrize(
    ("name", "settings"), [("LlavaOnevisionBackbone", {"max_tiles": 1}), ("SmolVLMBackbone", {"tiles": 1})]
)
def test_fewer_tiles_are_fewer_tokens(name: str, settings: dict[str, int], folders: dict[str, Path]) -> None:
    many, few = load(name, folders[name]), load(name, folders[name], **settings)
    image = make_image(60, 60)
    tokens = [
        len(model.select_tokens(*model.vision_tokens(model.vision_features([model.processor.resize(image)])), True))
        for model in (many, few)
    ]
    assert tokens[1] < tokens[0] and many.fingerprint() != few.fingerprint()
    for model, count in zip((many, few), tokens, strict=True):
        assert model.processor.image_ids((60, 60)).count(model.processor.image_id) == count


def test_what_qwen3_adds_behind_its_first_layers_reaches_it(folders: dict[str, Path]) -> None:
    """Also behind segment tokens, which move the places that it is added at."""
    backbone = load("Qwen3VLBackbone", folders["Qwen3VLBackbone"])
    head = VLMFusionHead(backbone, LastTokenPooling())
    batch = head.collator.encoder_batch(mixed())
    tokens = backbone.vision_tokens(head.frozen_features(batch.images))
    sequence = backbone.embed(batch, [tokens[index] for index in batch.prompts.image_index.tolist()])
    longer = sequence.prepend(segments(batch, head.hidden_size).tokens, batch.use_rows)
    assert len(longer.deepstack_embeds) == 2 and longer.visual_pos_mask is not None
    assert longer.visual_pos_mask.shape == longer.attention_mask.shape and not longer.visual_pos_mask[:, :9].any()
    assert torch.equal(
        longer.embeds[longer.visual_pos_mask],
        torch.cat([tokens[index] for index in batch.prompts.image_index.tolist()])[:, : head.hidden_size],
    )
    with torch.no_grad():
        without = replace(longer, deepstack_embeds=(), visual_pos_mask=None)
        difference = (backbone(longer) - backbone(without)).abs().amax(dim=(1, 2))
    assert (difference[[0, 2, 3, 4]] > 1e-2).all() and difference[1] < 1e-5
