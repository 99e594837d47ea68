"""Settings for a kind of machine, for any task: a configuration file each."""
