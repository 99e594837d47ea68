"""The compiled loop: collecting, sampling batches, updating, evaluating; for any ``Algorithm``.

Here belongs what runs inside jit around a method, and what builds those programs: the loop over
segments, rollouts, sources of batches, populations, diagnostics, non-finite updates and compiler
options. The mathematics of a method is in ``gcp_jax.algorithms`` and ``gcp_jax.core``; folders,
checkpoints, logs and everything else of the host is in ``gcp_jax.run``.
"""
