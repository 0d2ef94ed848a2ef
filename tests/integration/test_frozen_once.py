"""A step with a gradient cache on a tiny model of the paper's form: what is frozen runs once, and the numbers are the
plain step's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fixtures.tiny_virtue import pairs, tiny_virtue
from virtue_pl.adapters.lora import LoRA
from virtue_pl.backbones.segmentation.sam2 import Sam2Backbone
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone
from virtue_pl.engine.gradient_cache import FullBatch, GradientCache
from virtue_pl.models.connector import ConvolutionConnector, MaskConnector
from virtue_pl.models.virtue import Virtue
from virtue_pl.types import PairBatch


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many images each frozen network reads."""
    counts: Counter[str] = Counter()

    def counting(owner: type, name: str, label: str, number: Callable[..., int]) -> None:
        original = getattr(owner, name)

        def count(self: Any, *arguments: Any) -> Any:
            counts[label] += number(*arguments)
            return original(self, *arguments)

        monkeypatch.setattr(owner, name, count)

    counting(Sam2Backbone, "image_features", "pictures", len)
    counting(Qwen2VLBackbone, "vision_features", "vision", len)
    counting(Sam2Backbone, "forward", "prompts", lambda features, tokens: len(tokens.image_index))
    return counts


def step(model: Virtue, batch: PairBatch, cache: FullBatch | GradientCache) -> tuple[float, dict[str, torch.Tensor]]:
    model.gradient_cache = cache
    model.zero_grad()
    torch.manual_seed(3)
    loss = model.loss(model.embed_pairs(batch)).loss  # type: ignore[misc]
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


CACHES = {
    "two": GradientCache(2),
    "three": GradientCache(3),
    "tokens": GradientCache(chunk_tokens=64),
    "both": GradientCache(2, 64),
}


@pytest.mark.parametrize("cache", sorted(CACHES))
@pytest.mark.parametrize("connector", [ConvolutionConnector, MaskConnector])
@pytest.mark.parametrize("kind", ["dora", "lora", "full"])
def test_the_numbers_are_the_plain_steps(encoded: Counter[str], kind: str, connector: Any, cache: str) -> None:
    model = tiny_virtue(connector, None if kind == "full" else LoRA(dropout=0.0, dora=kind == "dora"))
    batch = pairs(model, 7)
    model.token_counts(batch.queries)
    encoded.clear()
    plain_loss, plain = step(model, batch, FullBatch())
    once = Counter(encoded)
    encoded.clear()
    cached_loss, cached = step(model, batch, CACHES[cache])
    assert encoded["pictures"] == encoded["vision"] == once["pictures"] == 5 and encoded["prompts"] == 6
    assert cached_loss == pytest.approx(plain_loss, rel=1e-6)
    assert plain.keys() == cached.keys()
    for name in plain:
        assert (cached[name] - plain[name]).norm() <= 1e-5 * plain[name].norm() + 1e-7, name


def test_what_is_trained_of_the_stream_runs_in_both_passes(encoded: Counter[str]) -> None:
    model = tiny_virtue(frozen=False)
    _, gradients = step(model, pairs(model, 4), GradientCache(2))
    assert encoded["pictures"] == 3 and encoded["prompts"] == 8
    assert any(name.startswith("segmentation.") for name in gradients) and any(
        name.startswith("prompt_encoder.") for name in gradients
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_an_image_without_a_prompt_costs_no_segmentation_where_the_model_needs_none(
    encoded: Counter[str], frozen: bool
) -> None:
    """The last target is an image alone."""
    model = tiny_virtue(frozen=frozen)
    model.segment_unprompted = False
    batch = pairs(model, 4)
    assert batch.targets.images.segmentation == (None,) and None not in batch.queries.images.segmentation
    model.token_counts(batch.queries)
    encoded.clear()
    plain_loss, _ = step(model, batch, FullBatch())
    assert encoded["pictures"] == 2 and encoded["vision"] == 3
    encoded.clear()
    cached_loss, _ = step(model, batch, GradientCache(2))
    assert encoded["pictures"] == 2 and encoded["vision"] == 3
    assert cached_loss == pytest.approx(plain_loss, rel=1e-6)


def chunk_by_chunk(model: Virtue, rows: int) -> type[FullBatch]:
    class Chunks(FullBatch):
        def __call__(self, encoder: Any, inputs: Any) -> torch.Tensor:
            return torch.cat([encoder.encode(chunk) for chunk in inputs.split(rows)])

    return Chunks


def test_dropout_is_replayed_in_the_adapters() -> None:
    model = tiny_virtue(adapter=LoRA(dropout=0.3))
    batch = pairs(model, 5)
    plain_loss, plain = step(model, batch, chunk_by_chunk(model, 2)())
    cached_loss, cached = step(model, batch, GradientCache(2))
    assert cached_loss == pytest.approx(plain_loss, rel=1e-6)
    assert all((cached[name] - plain[name]).norm() <= 1e-5 * plain[name].norm() + 1e-7 for name in plain)
    assert step(model, batch, FullBatch())[0] != pytest.approx(plain_loss, rel=1e-4)


def test_frozen_outputs_are_kept_as_a_setting_says() -> None:
    model = tiny_virtue()
    frozen = model.encode_frozen(pairs(model, 4).queries, 2, GradientCache(2, frozen_dtype="bfloat16").offload)
    features = frozen.images.stored_features
    assert frozen.images.vision == (None,) * 2 and all(not each.segmentation for each in features)
    assert {tensor.dtype for each in features for tensor in each.vision} == {torch.bfloat16}
    assert {one.embedding.dtype for one in frozen.segments} == {torch.bfloat16} and all(
        one.image.numel() == 0 for one in frozen.segments
    )
    assert len(frozen.segments) == 3 and torch.equal(
        frozen.select([2]).segments[0].embedding, frozen.segments[2].embedding
    )
    exact, _ = step(model, pairs(model, 4), GradientCache(2))
    assert step(model, pairs(model, 4), GradientCache(2, frozen_dtype="bfloat16"))[0] == pytest.approx(exact, rel=1e-2)


def test_segment_tokens_count_where_chunks_are_cut_by_tokens() -> None:
    model = tiny_virtue()
    queries = pairs(model, 4).queries
    texts = queries.attention_mask.sum(dim=1).tolist()
    assert model.token_counts(queries) == [texts[0] + 4, texts[1] + 4, texts[2] + 4, texts[3]]
