"""Clusters: a session on Ray, which schedules, retries and moves what `apps` and `search` run there."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
