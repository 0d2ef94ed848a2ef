"""Command line: dispatch, errors, options, Lightning's CLI; each command is a module of `cli.commands`."""
