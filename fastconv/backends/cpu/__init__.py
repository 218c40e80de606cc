"""The CPU engine: kernels compiled by Numba from vector instructions."""
