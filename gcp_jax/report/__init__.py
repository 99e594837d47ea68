"""Reports: one self-contained HTML page from the files of a run, of several runs or of a benchmark.

What belongs here: reading run folders (``read``), the numbers a page shows (``run_numbers``,
``benchmark_numbers``), figures (``plots`` and the two ``*_plots``), tables and their CSV
(``tables``), and the pages themselves (``run_page``, ``benchmark_page``) from jinja2 templates in
``templates/``, which hold all prose. The page of a sweep, ``gcp_jax.launch.sweep_page``, is made of
the same parts. What does not: anything that trains or evaluates; a report only reads files.
"""
