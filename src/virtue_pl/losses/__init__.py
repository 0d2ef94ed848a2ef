"""What training minimises; each loss is a small module or function with its paper's name on it."""
