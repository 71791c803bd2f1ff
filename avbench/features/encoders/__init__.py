"""Frozen encoders."""
