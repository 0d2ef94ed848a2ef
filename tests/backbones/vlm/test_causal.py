"""Every choice of attention gives the numbers of every other, on the tiny model of every backbone, or is refused."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import masking_utils, modeling_flash_attention_utils, modeling_utils
from transformers.integrations import flex_attention as flex
from transformers.modeling_flash_attention_utils import _is_packed_sequence

from fixtures.tiny_vlms import TINY
from virtue_pl.backbones.pretrained import skip_weights
from virtue_pl.backbones.vlm.causal import CausalVLM
from virtue_pl.backbones.vlm.pooling import LastTokenPooling, MeanPooling
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.types import IMAGE_TOKEN, EmbeddingInput, EncoderBatch, SegmentTokens, VirtueError

NAMES = {path.rpartition(".")[2]: path for path in sorted(TINY)}
FLEX = {"LlavaOnevisionBackbone", "SmolVLMBackbone"}
"""Those whose class offers flex attention."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlms")
    return {name: TINY[path](root / name) for name, path in NAMES.items()}


def load(name: str, folders: dict[str, Path], attention: str) -> CausalVLM:
    module, _, backbone = NAMES[name].rpartition(".")
    return getattr(import_module(module), backbone)(str(folders[name]), attention=attention).eval()


class Kernel:
    """What flash attention would compute from what it is given: a mask of two dimensions or none, no padding, and
    sequences packed in one row where lengths or position ids say so.
    """

    def __init__(self) -> None:
        self.masks: list[torch.Tensor | None] = []

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        **given: Any,
    ) -> tuple[torch.Tensor, None]:
        mask, (rows, _, tokens, _) = attention_mask, query.shape
        self.masks.append(mask)
        assert mask is None or tuple(mask.shape) == (rows, tokens)
        causal = given.get("is_causal")
        allowed = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
        if module.is_causal if causal is None else causal:
            allowed = allowed.tril()
        if mask is not None:
            allowed = allowed & mask.bool()[:, None, None, :]
        elif given.get("cu_seq_lens_q") is not None:
            starts = given["cu_seq_lens_q"]
            allowed = allowed & same_sequence(torch.bucketize(torch.arange(tokens), starts, right=True))
        elif _is_packed_sequence(given.get("position_ids"), rows):
            allowed = allowed & same_sequence((given["position_ids"][0] == 0).cumsum(0))
        allowed = allowed | torch.eye(tokens, dtype=torch.bool)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        found = scaled_dot_product_attention(query, key, value, allowed, scale=given.get("scaling"))
        return found.transpose(1, 2).contiguous(), None


def same_sequence(numbers: torch.Tensor) -> torch.Tensor:
    return numbers[:, None] == numbers


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """In the place of flash attention's, whose package is not there."""
    found = Kernel()
    functions = modeling_utils.ALL_ATTENTION_FUNCTIONS
    monkeypatch.setitem(functions._global_mapping, "flash_attention_2", found)
    monkeypatch.setattr(modeling_utils.PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    for module in (modeling_utils, modeling_flash_attention_utils):
        monkeypatch.setattr(module, "lazy_import_flash_attention", lambda *_, **__: None)
    return found


def make_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def rows() -> dict[str, list[EmbeddingInput]]:
    """Batches of every padding: none, right, and left, in front of segment tokens."""
    first, second = make_image(40, 70), make_image(110, 60, 1)
    one = EmbeddingInput("what is this?", (first,))
    several = EmbeddingInput(f"look at {IMAGE_TOKEN} and\n{IMAGE_TOKEN} here", (first, second))
    text = EmbeddingInput("a text")
    return {
        "one row": [one],
        "several images": [several],
        "a text": [text],
        "alike": [one, one],
        "mixed": [several, text, one, EmbeddingInput("a somewhat longer text without an image, to be padded beside")],
    }


def segments(batch: EncoderBatch, hidden: int) -> SegmentTokens | None:
    if not len(batch.use_rows):
        return None
    number = len(batch.use_rows)
    return SegmentTokens(torch.sin(torch.arange(number * 3 * hidden) / 7.0).view(number, 3, hidden))


def embeddings(backbone: CausalVLM, pooling: Any, with_segments: bool) -> dict[str, torch.Tensor]:
    head, found = VLMFusionHead(backbone, pooling).eval(), {}
    for name, items in rows().items():
        batch = head.collator.encoder_batch(items)
        with torch.no_grad():
            found[name] = head(batch, segments(batch, head.hidden_size) if with_segments else None)
    return found


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
@pytest.mark.parametrize("name", NAMES)
def test_every_attention_gives_the_same_numbers(
    name: str, attention: str, folders: dict[str, Path], kernel: Kernel
) -> None:
    usual, other = load(name, folders, "sdpa"), load(name, folders, attention)
    for pooling in (LastTokenPooling(), MeanPooling()):
        for with_segments in (False, True):
            expected, found = (embeddings(each, pooling, with_segments) for each in (usual, other))
            for batch, value in expected.items():
                torch.testing.assert_close(
                    found[batch], value, atol=1e-5, rtol=0, msg=lambda message, at=batch: at + message
                )
    if attention == "flash_attention_2":
        assert any(mask is None for mask in kernel.masks) and any(mask is not None for mask in kernel.masks)


def refusal(name: str, folders: dict[str, Path], attention: str) -> str:
    with pytest.raises(VirtueError) as caught:
        load(name, folders, attention)
    with skip_weights(), pytest.raises(VirtueError, match=f"attention: {attention.replace('|', '.')} does not work"):
        load(name, folders, attention)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_attention_that_does_not_work_is_one_line_when_the_model_is_built(
    name: str, folders: dict[str, Path]
) -> None:
    for attention in ("flash_attention_2", "flash_attention_3", "paged|eager", "fast", ""):
        line = refusal(name, folders, attention)
        assert line.startswith(f"attention: {attention} does not work for ") and "\n" not in line
        assert line.endswith("set `attention` to sdpa")
    if name not in FLEX:
        assert "does not support an attention implementation through" in refusal(name, folders, "flex_attention")


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask", "ignore:.*flex_attention called without")
@pytest.mark.parametrize("name", sorted(FLEX))
def test_flex_attention_gives_the_same_numbers_too(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel and its mask as torch runs them without compiling, which takes half a minute."""
    create = masking_utils.create_block_mask
    monkeypatch.setattr(
        masking_utils, "create_block_mask", lambda *sizes, **given: create(*sizes, **{**given, "_compile": False})
    )
    monkeypatch.setattr(flex, "compile_friendly_flex_attention", uncompiled)
    usual, other = load(name, folders, "sdpa"), load(name, folders, "flex_attention")
    expected, found = (embeddings(each, LastTokenPooling(), True) for each in (usual, other))
    for batch, value in expected.items():
        torch.testing.assert_close(found[batch], value, atol=1e-5, rtol=0)


def uncompiled(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, training: bool, **given: Any) -> Any:
    return flex.flex_attention(query, key, value, **given)
