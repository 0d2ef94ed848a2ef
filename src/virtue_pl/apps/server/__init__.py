"""The HTTP server: bodies to requests, requests to rows, rows to batches of the one model, embeddings to replies."""
