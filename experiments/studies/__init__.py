"""Experiments that explain a result, each a method or a configuration of its own."""
