"""Shards to batches, for each rank and worker."""
