"""Measurements of speed, memory and robustness; their results are in ``benchmarks/README.md``."""
