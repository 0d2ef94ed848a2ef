"""Images and weights from package registries, with checksums."""
