"""Logging set-up, TensorBoard and console progress."""
