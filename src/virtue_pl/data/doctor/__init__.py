"""Checks of shards and official folders: problems are found before a training meets them."""
