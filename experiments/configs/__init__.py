"""Configurations, one a task."""
