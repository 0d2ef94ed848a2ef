"""Model card: the model, how inputs are prepared for it, the versions it was written with, and its licence."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from virtue_pl import __version__

CARD = "README.md"
UNKNOWN_LICENSE = "unknown"
PACKAGES = ("torch", "torchvision", "transformers", "timm", "segment-anything", "lightning", "safetensors")


def read_license(folder: Path) -> str | None:
    """Return the licence that the head of a folder's card states; None where it states none."""
    lines = (folder / CARD).read_text(encoding="utf-8").splitlines() if (folder / CARD).is_file() else []
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return None
    try:
        head = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except yaml.YAMLError:
        return None
    found = head.get("license") if isinstance(head, Mapping) else None
    return None if found is None else str(found)


def versions() -> dict[str, str]:
    """Return the installed versions of this package and of those that its numbers depend on."""
    return {"virtue-pl": __version__, **{package: version(package) for package in PACKAGES}}


def model_card(spec: Mapping[str, Any], source: str, num_parameters: int, license: str | None) -> str:
    """Return the card's text. spec: the model's class_path and init_args. source: what it was exported from."""
    head = {
        "license": license or UNKNOWN_LICENSE,
        "library_name": "virtue-pl",
        "tags": ["visual-prompts", "multimodal-embeddings", "sentence-transformers"],
    }
    formatter = spec["init_args"].get("formatter") or {"class_path": "virtue_pl.preprocessing.VirtueFormatter"}
    stated = "" if license else "\nNobody has stated a licence; `virtue-pl export --license NAME` writes one.\n"
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {spec["class_path"].rpartition(".")[2]}

Unit embeddings of images, texts and visual prompts (VIRTUE, arXiv 2510.00523).
{num_parameters:,} numbers in its tensors.
Exported from `{source}`.
{stated}
```python
from virtue_pl import Embedder

embedder = Embedder.from_pretrained("FOLDER")
embedder.encode(["a cat", {{"image": "street.jpg", "regions": [{{"box": [10, 20, 200, 240]}}]}}])
```

The same in sentence-transformers, where this package is installed (no code of the folder is run):

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER", trust_remote_code=True)
```

## Input formatter

It prepares text, pixels and coordinates; the weights were trained with this one.

```yaml
{yaml.safe_dump(formatter, sort_keys=False).strip()}
```

## Config

```yaml
{yaml.safe_dump(dict(spec), sort_keys=False, width=140).strip()}
```

## Versions

| package | version |
|---|---|
""" + "".join(f"| {package} | {number} |\n" for package, number in versions().items())
