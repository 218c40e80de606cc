"""Depthwise convolution and its gradients: every channel on its own."""
