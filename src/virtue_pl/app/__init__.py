"""Commands that join data to models."""
