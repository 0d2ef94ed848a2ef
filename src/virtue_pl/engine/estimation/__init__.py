"""Estimates of a training step before it runs: memory by kind, operations, and what fits a device."""
