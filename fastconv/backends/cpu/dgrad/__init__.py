"""Input gradients and transposed convolutions, as forward convolutions with the weight turned round."""
