"""From ranks to figures with intervals, and comparisons of runs."""
