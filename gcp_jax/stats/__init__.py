"""Statistics of success rates and returns: intervals, bootstraps, paired comparisons.

What belongs here: functions from numbers (or rows of ``eval.jsonl``) to estimates with intervals,
in numpy and scipy only. What does not: files, figures and pages (``gcp_jax.report``), and anything
that runs on a device. The package imports nothing else of gcp_jax. Import from the submodules:
``intervals``, ``bootstrap``, ``spread``, ``paired`` and ``eval_rows``.
"""
