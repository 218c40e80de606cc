"""CUDA: the kernels of `kernels/` by way of CuPy."""
