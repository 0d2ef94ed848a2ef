"""LightningDataModules: what YAML names under `data:`."""
