"""Checks of datasets before a training finds out."""
