"""Bulk encoding: a source of documents becomes parts of encoded rows in a folder, which an index is made of.

In the order in which a document passes: `sources` and `own_documents` find and read it, `documents` decodes it,
`proposals` finds regions where none are given, `part_encoder` embeds its rows, and `parts` commits them. `encode` has
an engine do so: `local_engine` in this process, `ray_engine` on a cluster.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
