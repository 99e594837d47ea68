"""Measurements that anyone can repeat: ratios inside one process, medians with their spread."""
