"""One command per DVC stage: `python -m stages.NAME --help`."""
