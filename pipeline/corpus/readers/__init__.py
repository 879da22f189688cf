"""Readers of sources: one file for each kind, the list of them in `source.py`, and what they share."""
