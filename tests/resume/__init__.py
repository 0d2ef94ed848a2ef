"""Runs that are stopped in many ways and go on, compared with the same runs left alone; see `run.py`."""
