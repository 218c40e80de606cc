"""Pools: windows, whole maps and their gradients, at the speed of the memory they move."""
