"""A command a module: `leaf NAME --help`, or `python -m stages.NAME --help` in a checkout."""
