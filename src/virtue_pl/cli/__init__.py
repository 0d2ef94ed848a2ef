"""The commands: they join data to models."""
