"""Published and own datasets to folders of shards."""
