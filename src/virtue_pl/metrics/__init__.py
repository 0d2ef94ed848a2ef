"""What evaluation counts, with state that sums over ranks."""
