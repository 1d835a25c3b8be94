"""Pool, record, criteria, selectors and oracle."""
