"""Search among embedded images, regions and texts: what is stored of each, the index, and the hits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
