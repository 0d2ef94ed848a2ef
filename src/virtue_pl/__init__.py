"""virtue_pl: embeddings of pictures, texts and visual prompts."""

__version__ = "0.1.0"
