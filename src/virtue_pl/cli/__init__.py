"""The command line: dispatch, errors, and one module a command in `cli.commands`."""
