"""The textbook loops, jitted: easy to read, needs next to no memory, and never refuses."""
