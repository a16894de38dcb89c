"""Scores of classifiers, features and maps."""
