"""The mathematics that methods share: denoising, flows, diffusions, policies, critics, returns.

Here belong pure functions of arrays, networks, and the losses and updates that more than one method
uses. Nothing here has a loop over segments, reads a run configuration or touches a file; see
``gcp_jax.learner`` and ``gcp_jax.run``. One method each is in ``gcp_jax.algorithms``.
"""
