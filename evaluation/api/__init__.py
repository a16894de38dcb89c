"""The toolkit from Python: ``import dino_oct`` opens these (see docs/python.md)."""

import warnings

# Of libraries that would draw their bars as widgets; a notebook works without.
warnings.filterwarnings("ignore", "IProgress not found")
