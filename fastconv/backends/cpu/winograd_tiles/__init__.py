"""Winograd's convolution of few input channels: lanes are tiles, strides are taken apart into phases."""
