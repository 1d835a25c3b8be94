"""Boundary types and the classes that a user subclasses."""
