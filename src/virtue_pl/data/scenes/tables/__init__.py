"""Scenes and tasks as rows of parquet files."""
