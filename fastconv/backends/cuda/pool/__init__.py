"""Pools, unpooling, unfold and fold, in all directions."""
