"""Evaluation sets: files to rows to distinct inputs."""
