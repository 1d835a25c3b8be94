"""Curves and galleries."""
