"""The types that flow through virtue_pl: prompts, inputs, samples, batches, features and errors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
