"""Fully connected layers of few images."""
