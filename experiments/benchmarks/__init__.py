"""Benchmark files."""
