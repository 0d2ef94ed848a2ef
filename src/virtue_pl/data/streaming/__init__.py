"""Shards to batches, for each rank and data worker."""
