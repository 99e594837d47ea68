"""Configuration files for ``--config``: each has ``get_config()``, which returns a ConfigDict."""
