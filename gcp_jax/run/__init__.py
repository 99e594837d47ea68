"""The host side of one run: folder, stages, rows, checkpoints, saved policies.

Belongs here: everything that happens between two calls of the compiled loop, and once per run
before and after it. Does not belong here: maths and compiled programs (``core``, ``algorithms``,
``learner``), pages about finished runs (``report``), several runs at once (``launch``).
"""
