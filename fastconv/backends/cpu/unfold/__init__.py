"""unfold and fold."""
