"""Rows of SCaR and MMEB as published, and the catalogue of their sets."""
