"""FROC, COCO AP, matching and bootstrap: pure functions of predictions and annotations."""
