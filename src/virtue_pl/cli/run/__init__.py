"""Checks, trials, folders and summaries of a run that a command is about to start."""
