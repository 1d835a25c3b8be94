"""Curves, pictures with boxes and tables of a run."""
