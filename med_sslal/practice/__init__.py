"""Queries that go to a person, and the answers that come back."""
