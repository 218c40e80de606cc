"""Convolution on tensor cores: an implicit matrix product, with sums in single precision."""
