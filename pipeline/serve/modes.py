"""TODO."""

MODES = ("teacher", "standard", "asymmetric")
