"""Benchmarks that are no part of the program: `python -m benchmarks.selection`, `.pool`."""
