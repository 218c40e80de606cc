"""Convolution of any kind on CUDA cores."""
