"""The weight's gradient, of any kind of convolution."""
