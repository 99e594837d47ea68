"""The project's own tasks, one module or folder each: its ``Config``, scene, reset, step, success
and demonstrator. What several tasks share belongs in ``physics`` or ``robots``; tasks of other
projects in ``suites``."""
