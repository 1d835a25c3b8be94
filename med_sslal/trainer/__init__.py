"""One training, and the cycle loop over it."""
