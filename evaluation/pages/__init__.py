"""Pictures and pages of maps and embeddings."""
