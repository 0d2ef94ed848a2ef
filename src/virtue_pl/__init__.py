"""Embeddings of images, texts and visual prompts: the public names, each imported when it is first asked for."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
