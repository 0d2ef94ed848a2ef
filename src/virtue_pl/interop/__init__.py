"""Models in and out: published weights, exported folders, recorded outputs."""
