"""The backends: each knows the contract in `fastconv.algorithm`, and none knows another."""
