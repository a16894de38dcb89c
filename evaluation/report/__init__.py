"""The report that compares models."""
