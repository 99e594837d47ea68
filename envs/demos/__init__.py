"""Demonstrations: ``collect`` runs a task's demonstrator, ``storage`` writes and reads datasets,
``quality`` measures them. The demonstrators themselves belong to their tasks."""
