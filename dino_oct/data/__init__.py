"""Scans: the index of a folder, phantoms, the decoded cache, the sampler and the audit."""
