"""Locally connected layers."""
