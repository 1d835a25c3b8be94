"""Timing, no part of the program: `python -m benchmarks`, `.selection`, `.pool`."""
