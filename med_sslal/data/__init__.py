"""Datasets, splits, augmentation and loaders; no model in sight."""
