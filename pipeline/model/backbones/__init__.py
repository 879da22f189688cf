"""Backbones: a file for each way of computing a model's features, and `registry.py`, which chooses among them."""
