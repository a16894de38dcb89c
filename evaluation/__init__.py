"""Evaluations of a frozen backbone; each reads a run folder, a timm name or a file of weights."""
