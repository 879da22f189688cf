"""Distil a large text-embedding model into a small one that lives in its vector space (LEAF, arXiv 2509.12539)."""
