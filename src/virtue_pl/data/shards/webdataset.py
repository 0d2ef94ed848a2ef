"""webdataset, restricted: it opens no pickle, no shell and no URL.

`WDS_SECURE` also forbids it to open local files, so the stream opens shards itself and hands it the open file.
"""

from __future__ import annotations

import os

os.environ["WDS_SECURE"] = "1"

import webdataset as wds
from webdataset import utils

utils.enforce_security = True  # where webdataset was imported before this module

__all__ = ["wds"]
