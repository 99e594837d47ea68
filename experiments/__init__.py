"""Between the tasks and the command line: configurations of runs, and what is built from them.

``run_config`` builds configurations, ``assemble`` the task of a run, ``comparison`` is the logic of
``gcp-jax benchmark``, ``plan`` counts what a run will take, ``reference`` lists every field.
``configs``, ``sweeps`` and ``comparisons`` hold the files that a command line names, ``results``
what was measured with them. Nothing here knows of sweeps or schedulers; those are in
``gcp_jax.launch``.
"""
