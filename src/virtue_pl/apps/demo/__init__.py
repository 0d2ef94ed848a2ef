"""A page in the browser to point at things in images: its images, answers, layers, tables and callbacks."""
