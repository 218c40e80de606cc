"""Convolution of small groups of channels."""
