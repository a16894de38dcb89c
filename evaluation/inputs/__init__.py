"""What evaluations take: models, scans, features, masks."""
