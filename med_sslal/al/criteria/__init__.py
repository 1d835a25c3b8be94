"""Criteria: pure functions of the pool record, one file each."""
