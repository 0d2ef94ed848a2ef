"""From queries and candidates to ranks."""
