"""Detectors: images in, losses or detections out; no dataset in sight."""
