"""Studies: arms x seeds as ordinary runs, their comparison and what it supports."""
