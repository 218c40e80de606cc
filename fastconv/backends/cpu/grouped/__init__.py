"""Convolution with few output channels a group."""
