"""Benchmark suite and dataset toolkit for audio-visual class-incremental learning."""

__version__ = "0.1.0"
