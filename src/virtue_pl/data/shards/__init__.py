"""Folders of webdataset shards: records, manifest, writer."""
