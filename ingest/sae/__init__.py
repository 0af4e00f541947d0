"""Sparse autoencoders: what one is, its files, which one is meant, how good it is."""
