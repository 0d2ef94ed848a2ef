"""The Python interface for embedding: the embedder, the handle of one image, and the form of the vectors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
