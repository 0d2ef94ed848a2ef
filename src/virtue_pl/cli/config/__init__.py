"""Reading of a command's options and config files: the parser, entries of `shared`, classes by bare names."""
