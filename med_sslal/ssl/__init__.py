"""Pseudo-labels."""
