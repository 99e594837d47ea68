"""Finetuning generative control policies with reinforcement learning, in one compiled loop (see README.md)."""
