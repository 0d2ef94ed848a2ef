"""Runs of several stages: the quickstart and studies."""
