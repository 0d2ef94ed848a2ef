from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Qwen2VLModel

from fixtures.recorded import GOLDEN, Case, cases, replace_first_image
from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.input_formatters import InputFormatter, VirtueFormatter
from virtue_pl.types import IMAGE_TOKEN, EmbeddingInput, EncoderBatch, VirtueError

SINGLE_ROWS = ["text_only_1", *replace_first_image()]


@pytest.fixture(scope="module")
def backbone() -> Qwen2VLBackbone:
    return Qwen2VLBackbone(str(GOLDEN / "qwen2_vl")).eval()


class Unmarked(VirtueFormatter):
    """Texts as they are recorded."""

    def delimit_images(self, text: str, delimiters: tuple[str, str]) -> str:
        return text


def items(case: Case) -> list[EmbeddingInput]:
    return [
        EmbeddingInput(text, () if image is None else (image,))
        for text, image in zip(case.texts, case.images, strict=True)
    ]


def rows(backbone: Qwen2VLBackbone, formatter: InputFormatter, *shown: EmbeddingInput) -> EncoderBatch:
    return ContrastiveCollator(backbone.processor, formatter, None, {"box": 1.0}, ("box",)).encoder_batch(shown)


@pytest.mark.parametrize("name", SINGLE_ROWS)
def test_token_ids_are_the_published_ones(backbone, name):
    batch = rows(backbone, Unmarked(prompt_text=False), *items(cases()[name]))
    assert torch.equal(batch.input_ids, cases()[name].outputs["input_ids"])


@pytest.mark.parametrize("name", [name for name in replace_first_image() if "vision_tokens" in cases()[name].outputs])
def test_vision_tokens_are_the_published_ones(backbone, name):
    batch = rows(backbone, Unmarked(prompt_text=False), *items(cases()[name]))
    (tokens,) = backbone.vision_tokens(backbone.vision_features(batch.images.vision))
    torch.testing.assert_close(tokens, cases()[name].outputs["vision_tokens"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["text_only_1", "text_only_batch3"])
def test_embeddings_of_texts_are_the_published_ones(backbone, name):
    batch = rows(backbone, VirtueFormatter(), *items(cases()[name]))
    head = VLMFusionHead(backbone, LastTokenPooling()).eval()
    with torch.no_grad():
        torch.testing.assert_close(head.encode(batch), cases()[name].outputs["embedding"], atol=1e-5, rtol=0)
    embeds = backbone.embed(batch, ()).embeds
    for found, expected, real in zip(
        embeds, cases()[name].outputs["inputs_embeds"], batch.attention_mask.sum(dim=1).tolist(), strict=True
    ):
        torch.testing.assert_close(found[:real], expected[-real:])


def mixed() -> list[EmbeddingInput]:
    images = [cases()[name].images[0] for name in ("image_noprompt", "image_point", "image_bbox")]
    return [
        EmbeddingInput(f"look at {IMAGE_TOKEN} and\n{IMAGE_TOKEN}{IMAGE_TOKEN} here", tuple(images)),
        EmbeddingInput("a text"),
        EmbeddingInput("what is this, and where, and why is it here at all?", tuple(images[1:2])),
        EmbeddingInput("", tuple(images[2:])),
    ]


def test_positions_are_qwens_own_and_each_rows_alone(backbone):
    batch = rows(backbone, VirtueFormatter(), *mixed())
    model: Qwen2VLModel = backbone.model
    of_image = (batch.input_ids == backbone.processor.image_id).int()
    sizes = [batch.images.vision[index].shape[1:] for index in batch.prompts.image_index.tolist()]
    grids = torch.tensor([[1, height // 14, width // 14] for height, width in sizes])
    expected, _ = model.get_rope_index(batch.input_ids, of_image, grids, attention_mask=batch.attention_mask)
    assert torch.equal(batch.position_ids, expected)
    for row, item in enumerate(mixed()):
        alone = rows(backbone, VirtueFormatter(), item).position_ids
        assert torch.equal(batch.position_ids[:, row : row + 1, : alone.shape[2]], alone)
        assert torch.equal(batch.select([row]).position_ids, alone)


def test_the_assembled_sequence_is_the_models_own_forward(backbone):
    """With the marks around the image, as Qwen2-VL was trained."""
    batch = rows(backbone, VirtueFormatter(), mixed()[2])
    prepared = backbone.processor.normalise(list(batch.images.vision), do_resize=False, return_tensors="pt")
    of_image = (batch.input_ids == backbone.processor.image_id).int()
    assert (
        backbone.processor.tokenizer.decode(batch.input_ids[0, [0, int(of_image.sum()) + 1]])
        == "<|vision_start|><|vision_end|>"
    )
    with torch.no_grad():
        expected = backbone.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            mm_token_type_ids=of_image,
            use_cache=False,
            **prepared,
        )
        found = backbone(backbone.embed(batch, backbone.vision_tokens(backbone.vision_features(batch.images.vision))))
    torch.testing.assert_close(found, expected.last_hidden_state)


def test_an_embedding_does_not_depend_on_its_batch(backbone):
    head = VLMFusionHead(backbone, LastTokenPooling()).eval()
    with torch.no_grad():
        together = head.encode(rows(backbone, VirtueFormatter(), *mixed()))
        alone = torch.cat([head.encode(rows(backbone, VirtueFormatter(), item)) for item in mixed()])
    assert (together - alone).abs().max() < 1e-5


def test_what_learns_are_the_language_models_layers(backbone):
    learning = {name.split(".")[1] for name, parameter in backbone.model.named_parameters() if parameter.requires_grad}
    assert learning == {"layers", "norm"}
    assert not any(name.startswith("lm_head") for name, _ in backbone.model.named_parameters())
    assert backbone.fingerprint() == Qwen2VLBackbone(str(GOLDEN / "qwen2_vl")).fingerprint()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((170, 230), (168, 224)), ((10, 10), (56, 56)), ((3000, 2000), (1204, 812)), ((30, 600), (28, 588))],
)
def test_images_are_resized_within_the_papers_bounds(backbone, size, expected):
    assert backbone.processor.resized_size(size) == expected
    assert backbone.processor.resize(torch.zeros(3, *size, dtype=torch.uint8)).shape == (3, *expected)


def test_long_texts_are_cut_but_no_image_is(backbone):
    processor = Qwen2VLBackbone(str(GOLDEN / "qwen2_vl"), max_tokens=4).processor
    ids = processor.tokenize_row(f"a text that is long enough {IMAGE_TOKEN} to be cut", [(56, 84)])
    assert ids.count(processor.image_id) == 6 and len(ids) == 10


def test_mistakes_are_one_line(backbone):
    with pytest.raises(VirtueError, match="a text has 2 positions for images, expected 1"):
        backbone.processor.tokenize_row(f"{IMAGE_TOKEN} {IMAGE_TOKEN}", [(56, 56)])
    with pytest.raises(VirtueError, match="a ratio of at most 200"):
        backbone.processor.resized_size((1, 300))
    with pytest.raises(VirtueError, match=r"the folder ./nowhere is not there"):
        Qwen2VLBackbone("./nowhere")


def test_the_last_layer_gives_the_last_tokens_states_alone(backbone):
    """Padded and not, with gradients; beside the stock forward, which computes all."""
    found = rows(
        backbone,
        VirtueFormatter(),
        EmbeddingInput("a dog"),
        EmbeddingInput("a cat that sits on the mat"),
        EmbeddingInput("a"),
    )
    for batch in (found, found.select([1])):
        states = []
        for pooled in (
            lambda sequence: LastTokenPooling()(backbone(sequence), sequence.attention_mask),
            backbone.last_states,
        ):
            sequence = backbone.embed(batch, ())
            embeds = sequence.embeds.detach().requires_grad_()
            states.append(pooled(replace(sequence, embeds=embeds)))
            states[-1].square().sum().backward()
            states.append(embeds.grad)
        assert states[2].shape == (len(batch), backbone.hidden_size)
        torch.testing.assert_close(states[2], states[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states[3], states[1], atol=1e-5, rtol=1e-4)
