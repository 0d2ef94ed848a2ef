"""Comparison of a model with recorded outputs: forward passes, gradients, rows of evaluations."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
