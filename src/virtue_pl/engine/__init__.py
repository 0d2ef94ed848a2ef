"""Training of every LightningModule here: base class, optimizer, gradient cache, sharding, memory and precision."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
