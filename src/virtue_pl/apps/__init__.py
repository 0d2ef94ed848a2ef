"""Applications: what runs for a person or a program, such as bulk encoding."""
