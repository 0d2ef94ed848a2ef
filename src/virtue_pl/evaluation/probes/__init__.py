"""Measurements beside ranking: robustness, prompt consistency, cost."""
