"""`SentenceTransformerModule`: a model of this package in sentence-transformers, with images and regions.

    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer("FOLDER", trust_remote_code=True)
    model.encode(["a cat", {"image": "street.jpg", "regions": [{"box": [10, 20, 200, 240]}]}])

FOLDER is one that `virtue-pl export` writes: its `modules.json` names this class. sentence-transformers asks for
`trust_remote_code=True` wherever a folder names a class that is not its own; nothing in the folder is run, since the
class is that of the installed package. `load_sentence_transformer` needs no such word, and reads any other model of
this package, too. Both need the extra `sentence-transformers`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from virtue_pl.checkpoints.folder import SENTENCE_TRANSFORMERS_FILE, new_folder, write_files
from virtue_pl.checkpoints.pretrained import read_any
from virtue_pl.embedder import Embedder
from virtue_pl.integrations.request_encoder import load_embedder, to_request
from virtue_pl.preprocessing.embedding_rows import names_image
from virtue_pl.preprocessing.requests import ImageAccess, decode_inputs, decode_request
from virtue_pl.types import EmbeddingInput, VirtueError
from virtue_pl.types.prompt_values import describe

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modality import is_image_url_or_path
    from sentence_transformers.base.modality_types import Modality
    from sentence_transformers.base.modules import InputModule
    from sentence_transformers.util import load_dir_path
except ModuleNotFoundError as error:
    raise VirtueError(
        f"virtue_pl.integrations needs sentence-transformers, which is not installed ({error}):"
        " pip install 'virtue-pl[sentence-transformers]'"
    ) from error


class SentenceTransformerModule(InputModule):
    """The one module of a SentenceTransformer around an `Embedder`.

    An input is a text, an image (as sentence-transformers takes it: PIL, array, tensor, a string that is the path or
    the data URI of one), a request as a mapping (`text`, `image`, `regions`, see `EmbeddingRequest`), or a
    conversation. A prompt stands before each text as it is, and alone where there is none.

    Args:
        embedder: what encodes; its model is moved by the SentenceTransformer.
        source: the folder or checkpoint that the model was loaded from, of which `save` needs the description.

    Example:
        >>> module = SentenceTransformerModule(Embedder.from_pretrained("exported"))  # doctest: +SKIP
        >>> SentenceTransformer(modules=[module]).encode({"text": "a cat"}).shape
        (384,)
    """

    config_keys = ["source"]  # noqa: RUF012  # as the base class has it

    def __init__(self, embedder: Embedder, source: str | None = None) -> None:
        super().__init__()
        self.embedder = embedder
        self.model = embedder.model
        self.source = source
        self._dtypes = parameter_dtypes(self.model)

    @property
    def modalities(self) -> list[Modality]:
        """The kinds of inputs, as sentence-transformers names them."""
        return ["text", "image", ("image", "text"), "message"]

    def get_embedding_dimension(self) -> int:
        """Return the length of an embedding."""
        return self.embedder.embed_dim

    def preprocess(  # type: ignore[override]  # without further arguments, which would be dropped in silence
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        task: str | None = None,
        processing_kwargs: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return {"items": inputs with their images decoded}, one for each input.

        Args:
            inputs: the inputs of a batch.
            prompt: stands before each text.
            task: "query" or "document", which tell themselves apart by their prompts alone.
            processing_kwargs: none, since the model's own input formatter prepares inputs.

        Raises VirtueError, which shows the input, for one that cannot be read.
        """
        if processing_kwargs:
            raise VirtueError(
                f"processing_kwargs is {describe(processing_kwargs)}, expected none: the model's own input formatter"
                " prepares inputs; give `max_pixels` and the like as model_kwargs when it is loaded"
            )
        return {"items": [self.read_input(each, prompt or "") for each in inputs]}

    def read_input(self, value: Any, prompt: str) -> EmbeddingInput:
        """Return one input with its images decoded, behind a prompt. Raises VirtueError, which shows the input."""
        is_image = isinstance(value, str) and (is_image_url_or_path(value) or names_image(value))
        try:
            request = to_request(value, "image" if is_image else "text")
            (row,) = decode_request(request, ImageAccess(max_pixels=self.embedder.max_pixels))
            text = f"{prompt}{row.text}" if row.text else prompt.rstrip()
            (item,) = decode_inputs([replace(row, text=text)], self.embedder.max_pixels)
            self.embedder.collator.check_input(item)
        except VirtueError as error:
            raise VirtueError(f"{describe(value)}: {error}") from error
        return item

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return the features with "sentence_embedding", unit float32 [inputs, embed_dim] on the model's device.

        features: of `preprocess`. Raises VirtueError in training, which has its own commands, and where the model was
        cast since it was loaded.
        """
        if self.training and torch.is_grad_enabled():
            raise VirtueError(
                "this model is trained by `virtue-pl fit --config configs/finetune.yaml`, expected to embed alone here:"
                " call `encode`, or `eval()`"
            )
        if (dtypes := parameter_dtypes(self.model)) != self._dtypes:
            raise VirtueError(
                f"the model was cast to {' and '.join(sorted({str(dtype) for dtype in dtypes.values()}))} since it was"
                ' loaded, expected its own types: load it with model_kwargs={"dtype": "bfloat16"}'
            )
        self.embedder.device = next(self.model.parameters()).device
        items = features["items"]
        features["sentence_embedding"] = self.embedder.embed(items, len(items)).to(self.embedder.device)
        return features

    @classmethod
    def load(  # type: ignore[override]  # of the arguments of a hub and of transformers only those that it reads
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> SentenceTransformerModule:
        """Load the module of a folder, or of a hub's repository, as SentenceTransformer calls it.

        Args:
            model_kwargs: options of `Embedder.from_pretrained`, such as dtype or max_pixels.
            backend: "torch".
            others: see `sentence_transformers.base.modules.Module.load`.

        Raises VirtueError for a folder of another model, an unknown option, or options that this model does not read.
        """
        if backend != "torch":
            raise VirtueError(f"backend is {backend!r}, expected 'torch'")
        for name in ("processor_kwargs", "config_kwargs"):
            if kwargs.get(name):
                raise VirtueError(
                    f"{name} is {describe(kwargs[name])}, expected none: options of Embedder.from_pretrained, such as"
                    " dtype and max_pixels, are model_kwargs"
                )
        folder = load_dir_path(model_name_or_path, subfolder, token, cache_folder, revision, local_files_only)
        if folder is None:
            missing = Path(model_name_or_path) / subfolder
            raise VirtueError(f"{missing} is not there, expected a folder that `virtue-pl export` wrote")
        options = {"device": "cpu", **embedder_options(model_kwargs or {})}
        return cls(load_embedder(folder, **options), folder)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the model into a folder, as `virtue-pl export` does; tensors have the types of the files it is from.

        Raises VirtueError for another format than safetensors, and for a module that was made of an embedder.
        """
        if not safe_serialization:
            raise VirtueError("safe_serialization is False, expected True: models are written as safetensors alone")
        if self.source is None:
            raise VirtueError(
                "this model was made of an Embedder, expected one loaded from a folder or a checkpoint: its description"
                " is written, too"
            )
        checkpoint = read_any(self.source)
        tensors = self.model.state_dict()
        typed = {name: tensors[name].to(tensor.dtype) for name, tensor in checkpoint.tensors.items()}
        target = Path(output_path)
        with new_folder(target / ".new") as folder:
            write_files(replace(checkpoint, tensors=typed), folder, self.source)
        for path in sorted((target / ".new").iterdir()):
            if (target / path.name).is_dir():
                shutil.rmtree(target / path.name)
            os.replace(path, target / path.name)
        (target / ".new").rmdir()


def parameter_dtypes(model: torch.nn.Module) -> dict[bool, torch.dtype]:
    """Return the dtype of a model's matrices (True) and of its vectors (False)."""
    return {parameter.ndim > 1: parameter.dtype for parameter in model.parameters()}


def embedder_options(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return sentence-transformers' options of a model as those of an embedder: `dtype` may be of torch, or "auto"."""
    options = dict(model_kwargs)
    for name in ("torch_dtype", "dtype"):
        if name in options:
            dtype = options.pop(name)
            options["dtype"] = "float32" if dtype in (None, "auto") else str(dtype).removeprefix("torch.")
    return options


def load_sentence_transformer(
    model: str | Path | Embedder,
    *,
    device: str | None = None,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    similarity_fn_name: str | None = None,
    truncate_dim: int | None = None,
    **options: Any,
) -> SentenceTransformer:
    """Return a model of this package as a SentenceTransformer.

    Args:
        model: the folder, hub name or run's checkpoint, see `Embedder.from_pretrained`; or an embedder, whose
            instructions become prompts.
        device, prompts, default_prompt_name, similarity_fn_name, truncate_dim: see `SentenceTransformer`; those that a
            folder states count where they are not given.
        options: of `Embedder.from_pretrained`, such as dtype or max_pixels.

    Raises VirtueError for a folder of another model, and for an unknown option.

    Example:
        >>> model = load_sentence_transformer("exported", prompts={"query": "Find the caption. "})  # doctest: +SKIP
        >>> model.encode_query({"image": "street.jpg", "regions": [{"box": [10, 20, 200, 240]}]}).shape
        (384,)
    """
    embedder = load_embedder(model, **options)
    source = None if isinstance(model, Embedder) else str(model)
    saved = read_settings(Path(model) / SENTENCE_TRANSFORMERS_FILE) if not isinstance(model, Embedder) else {}
    own = {role: f"{instruction} " for role, instruction in embedder.instructions.items()}
    return SentenceTransformer(
        modules=[SentenceTransformerModule(embedder, source)],
        device=device or str(embedder.device),
        prompts={**saved.get("prompts", {}), **own, **(prompts or {})},
        default_prompt_name=default_prompt_name or saved.get("default_prompt_name"),
        similarity_fn_name=similarity_fn_name or saved.get("similarity_fn_name"),  # type: ignore[arg-type]
        truncate_dim=truncate_dim or saved.get("truncate_dim"),
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a folder's SentenceTransformer; none where it has no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VirtueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise VirtueError(f"{path} holds {describe(found)}, expected a mapping")
    return found
