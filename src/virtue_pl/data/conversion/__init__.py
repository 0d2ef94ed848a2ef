"""Published and own datasets to shards."""
