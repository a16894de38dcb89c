"""Evaluations of a frozen backbone; each reads a run folder, a timm name or a DINO file."""
