"""Maps of what a model looks at, every method behind one door."""
