"""Applications: what runs for a person or another program."""
