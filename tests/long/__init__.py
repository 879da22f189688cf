"""Tests that build environments with other versions and other libraries: minutes, and packages from the network.

They are left out of the default run: `python -m pytest -m long tests/long`.
"""
