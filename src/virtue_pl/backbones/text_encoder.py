"""Text encoders of several families (BERT, RoBERTa, MPNet, DistilBERT, ModernBERT, ...) behind one call."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel

from virtue_pl.backbones.hub_models import check_available
from virtue_pl.backbones.pretrained import are_weights_skipped, build_without_weights, readable_description
from virtue_pl.types import VirtueError

DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
)
"""Names of the dropouts in the configs of the families; each has two or three of them."""


def load_text_encoder(name: str, dropout: float) -> nn.Module:
    """Return a text encoder without its pooler, whose every dropout is `dropout`.

    Raises VirtueError for a missing folder or another kind of model.
    """
    if name.startswith((".", "/")) or ("/" in name and not Path(name).exists() and Path(name).parent.exists()):
        if not Path(name).is_dir():
            raise VirtueError(
                f"text_model: the folder {name} is not there: run `virtue-pl fetch weights`, or name a model of the hub"
            )
    check_available(name, "text_model")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        model_class: Any = MODEL_MAPPING[type(config)]
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise VirtueError(f"text_model: {name} cannot be loaded as a text encoder ({reason}): name another") from error
    dropouts = {key: dropout for key in DROPOUTS if hasattr(config, key)}
    # The fused attention's backward is slower than plain products on a CPU, and its sequences are short here.
    settings: dict[str, Any] = {"attn_implementation": "eager"}
    if "add_pooling_layer" in inspect.signature(model_class).parameters:
        settings["add_pooling_layer"] = False
    if are_weights_skipped():
        model = build_without_weights(name, dropouts, **settings)
    else:
        with readable_description(name):
            model = AutoModel.from_pretrained(name, trust_remote_code=False, **dropouts, **settings)
    check_encoder(model, name)
    return model


def check_encoder(model: Any, name: str) -> None:
    """Raise VirtueError for a model that does not read embedded tokens of its own width from both sides."""
    kind = type(model).__name__
    if not hasattr(model, "embeddings") or getattr(model.config, "is_encoder_decoder", False):
        raise VirtueError(
            f"text_model: {name} is a {kind}, expected a text encoder such as a BERT, DistilBERT or ModernBERT"
        )
    width = model.get_input_embeddings().embedding_dim
    if width != model.config.hidden_size:
        raise VirtueError(
            f"text_model: {name} is a {kind} with embeddings of {width} numbers and states of"
            f" {model.config.hidden_size}, expected a text encoder in which both are alike"
        )


def first_position(model: Any) -> int:
    """Return the position id of a text's first token: 0, or behind that of padding in RoBERTa's family and MPNet."""
    padding = getattr(model.embeddings, "padding_idx", None)
    return 0 if padding is None or not hasattr(model.embeddings, "position_embeddings") else int(padding) + 1
