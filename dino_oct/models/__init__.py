"""Backbones, the projection head and the multi-crop forward pass."""
