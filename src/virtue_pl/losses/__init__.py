"""Training objectives: each is a small module or function with its paper's name on it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
