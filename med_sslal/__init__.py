"""Active and semi-supervised training of object detectors for medical images."""
