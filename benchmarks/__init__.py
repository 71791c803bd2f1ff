"""Measurements too slow for tests."""
