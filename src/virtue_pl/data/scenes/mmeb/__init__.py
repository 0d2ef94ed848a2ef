"""MMEB-mini: eight tasks in MMEB's form, two of each of its meta-tasks, from the cut-outs and photographs of the scenes."""
