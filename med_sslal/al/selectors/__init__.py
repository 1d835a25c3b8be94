"""Selectors: from rated candidates to exactly the budget, one file each."""
