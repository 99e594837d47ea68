"""Benchmark files for ``gcp-jax benchmark --file``."""
