"""FROC, COCO and bootstrap: pure functions of predictions and labels."""
