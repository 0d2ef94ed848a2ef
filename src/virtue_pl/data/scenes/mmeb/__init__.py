"""MMEB-mini: eight tasks in MMEB's form, two of each meta-task.

They are made from the same cut-outs and photographs as the scenes.
"""
