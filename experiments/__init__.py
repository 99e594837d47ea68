"""Configurations, the command line, and what joins tasks (``envs``) to the framework (``gcp_jax``)."""
