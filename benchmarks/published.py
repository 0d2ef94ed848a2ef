"""The published training code's work on stock transformers and peft: the baseline of the benchmarks.

It differs from ours in this alone (source: VIRTUE's code and its runs): each forward computes SAM 2 with all its
pyramid levels and the decoder's whole two-way transformer, the vision tower, and the logits of the whole vocabulary at
every position; a gradient cache runs all of that in both passes; DoRA is peft's. The weights are those of the model
that it is compared to, so that both give the same loss. It runs on that model's device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.sam2.configuration_sam2 import Sam2Config, Sam2MaskDecoderConfig, Sam2PromptEncoderConfig
from transformers.models.sam2.modeling_sam2 import Sam2Model

from virtue_pl.adapters.lora import LoRA
from virtue_pl.backbones.segmentation.prompt_tokens import labelled_points, padding_last
from virtue_pl.models.virtue import Virtue
from virtue_pl.types import EmbeddingBatch, EncoderBatch, PairBatch


def load_stock_vlm(folder: Path) -> Any:
    """Return the language model of a folder with its vocabulary's head, in float32."""
    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


class Published(nn.Module):
    """The published model, as far as a training step runs it, with the weights of `ours`, on its device.

    Args:
        ours: the model to compare to.
        vlm: a language model of the same sizes and types with its vocabulary's head, whose other weights are replaced.
        precision: context of each forward pass, such as that of mixed precision.
    """

    def __init__(self, ours: Any, vlm: Any, precision: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        super().__init__()
        source: Virtue = ours
        backbone: Any = source.segmentation.backbone
        prompts: Any = source.prompt_encoder.encoder
        width, canvas = backbone.widths.embedding, backbone.image_size
        config = Sam2Config(
            vision_config=backbone.vision_encoder.config,
            prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=width, image_size=canvas),
            mask_decoder_config=Sam2MaskDecoderConfig(hidden_size=width),
        )
        with backbone.mean.device:
            self.sam: Any = Sam2Model(config).eval().requires_grad_(False)
        for name, module in (
            ("vision_encoder", backbone.vision_encoder),
            ("mask_decoder", backbone.mask_decoder),
            ("prompt_encoder", prompts.encoder),
        ):
            getattr(self.sam, name).load_state_dict(module.state_dict())
        self.sam.shared_image_embedding.positional_embedding.copy_(
            prompts.encoder.shared_embedding.positional_embedding
        )
        self.sam.no_memory_embedding.data.copy_(backbone.no_memory_embedding)
        self.register_buffer("mean", backbone.mean.clone())
        self.register_buffer("std", backbone.std.clone())
        self.vlm: Any = vlm.requires_grad_(False)
        inject_adapter_in_model(LoRA().config, self.vlm.model.language_model)
        for parameter in self.vlm.parameters():
            if parameter.requires_grad:  # adapters are float32, as peft's `get_peft_model` makes them
                parameter.data = parameter.data.float()
        self.vlm.model.language_model.load_state_dict(source.fusion.backbone.model.language_model.state_dict())  # type: ignore[union-attr, operator]
        self.vlm.model.visual.load_state_dict(source.fusion.backbone.model.visual.state_dict())  # type: ignore[union-attr, operator]
        self.processor: Any = source.fusion.backbone.processor
        self.connector, self.loss, self.canvas = source.connector, source.loss, canvas
        self.precision = precision

    def segment(self, inputs: EncoderBatch) -> Tensor:
        """Return the two-way transformer's image features, encoding an image again for every use of it."""
        pixels = torch.stack([inputs.images.segmentation[index] for index in inputs.prompts.owners])  # type: ignore[arg-type]
        unit = ((pixels.float() / 255 - self.mean) / self.std).to(self.sam.dtype)
        level = self.sam.vision_encoder(unit).fpn_hidden_states[2]
        points = [labelled_points([prompt], padding_last, pixels.device) for prompt in inputs.prompts.prompts]
        coordinates = torch.stack([found for found, _, _ in points])[:, None, :-1] * self.canvas
        sparse, dense = self.sam.prompt_encoder(
            coordinates, torch.stack([labels for _, labels, _ in points])[:, None, :-1], None, None
        )
        decoder = self.sam.mask_decoder
        own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(
            len(pixels), 1, -1, -1
        )
        image = level + self.sam.no_memory_embedding.reshape(1, -1, 1, 1)
        positions = self.sam.get_image_wide_positional_embeddings().repeat(len(pixels), 1, 1, 1)
        tokens = torch.cat([own, sparse.to(own.dtype)], dim=2)
        _, keys = decoder.transformer(tokens, image + dense, positions.to(image.dtype), attention_similarity=None)
        return keys[:, 0].transpose(1, 2).reshape(image.shape)

    def encode(self, inputs: EncoderBatch) -> Tensor:
        """Return unit embeddings; the rows of a batch all have an image, or none has."""
        with self.precision():
            return self.embed(inputs)

    def embed(self, inputs: EncoderBatch) -> Tensor:
        """Return unit embeddings, in the precision of the context."""
        model = self.vlm.model
        embeds, mask, positions = (
            model.language_model.embed_tokens(inputs.input_ids),
            inputs.attention_mask,
            inputs.position_ids,
        )
        device = mask.device
        if len(inputs.prompts):
            shown = [inputs.images.vision[index] for index in inputs.prompts.owners]
            prepared = self.processor.normalise(shown, do_resize=False, return_tensors="pt").to(device)
            with torch.no_grad():
                vision = model.get_image_features(prepared["pixel_values"], prepared["image_grid_thw"]).pooler_output
                features = self.segment(inputs)
            embeds = embeds.masked_scatter(
                (inputs.input_ids == self.processor.image_id)[..., None], torch.cat(list(vision)).to(embeds.dtype)
            )
            segments = self.connector.project(self.connector.reduce(features.float()).flatten(2).transpose(1, 2))
            embeds = torch.cat([segments.to(embeds.dtype), embeds], dim=1)
            mask = torch.cat([mask.new_ones(segments.shape[:2]), mask], dim=1)
            positions = torch.cat([positions.new_zeros(3, *segments.shape[:2]), positions], dim=2)  # type: ignore[union-attr]
        output = model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        )
        self.vlm.lm_head(output.last_hidden_state)
        last = (mask * torch.arange(mask.shape[1], device=device)).argmax(dim=1)
        return normalize(output.last_hidden_state[torch.arange(len(mask), device=device), last].float(), dim=-1)

    def step(self, batch: PairBatch, chunk_size: int) -> Tensor:
        """Compute one batch's gradients through a gradient cache (arXiv 2101.06983), and return the loss.

        All chunks are encoded without gradients first, and then again with gradients.
        """
        inputs = [rows.split(chunk_size) for rows in (batch.queries, batch.targets)]
        generator = generator_of(batch.queries.input_ids.device)
        replay, cached = [], []
        for chunks in inputs:
            found, states = [], []
            for chunk in chunks:
                states.append(generator.get_state())
                with torch.no_grad():
                    found.append(self.encode(chunk))
            replay.append(states)
            cached.append(torch.cat(found).requires_grad_())
        negatives = cached[0].new_zeros(0, cached[0].shape[1])
        loss: Tensor = self.loss(EmbeddingBatch(cached[0], cached[1], negatives, batch.ids)).loss  # type: ignore[misc]
        loss.backward()
        for chunks, embeddings, states in zip(inputs, cached, replay, strict=True):
            gradients = embeddings.grad.split(chunk_size)  # type: ignore[union-attr]
            for chunk, gradient, state in zip(chunks, gradients, states, strict=True):
                generator.set_state(state)
                self.encode(chunk).backward(gradient)
        return loss.detach()


def generator_of(device: torch.device) -> torch.Generator:
    """Return the generator that draws a device's random numbers."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
