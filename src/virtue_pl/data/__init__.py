"""What streams: formats, shards and scenes."""
