"""Direct convolution, of any kind of problem."""
