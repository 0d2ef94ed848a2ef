"""Evaluation sets: from files to rows to distinct inputs."""
