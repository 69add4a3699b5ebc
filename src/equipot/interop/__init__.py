"""Models of other codes, made models of equipot."""
