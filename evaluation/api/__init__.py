"""The toolkit from Python: ``import dino_oct`` opens these (see docs/python.md)."""
