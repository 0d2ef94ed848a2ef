"""What one sees while training and testing: callbacks that YAML can name, and the pictures they draw."""
