"""Dense convolution of few input or output channels: lanes are columns."""
