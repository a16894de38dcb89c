"""Self-supervised DINO pretraining on retinal OCT scans, and the parts the other two packages share."""

__version__ = "0.1.0"
