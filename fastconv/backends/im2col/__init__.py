"""Unfold and multiply: NumPy and the BLAS that it comes with."""
