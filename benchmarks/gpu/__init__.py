"""fastconv on a GPU: every algorithm checked there, then timed beside cuDNN. `python -m benchmarks.gpu`."""
