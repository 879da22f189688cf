"""Engines that carry out work orders: threads on this machine for a local teacher, requests for an API."""
