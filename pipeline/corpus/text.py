"""Cleaning of texts, before their keys are computed."""

import polars as pl


def clean(texts: pl.Expr) -> pl.Expr:
    """Unicode NFC, each run of white space a single space, none at the ends; null becomes empty."""
    # Single spaces, which are most of the white space, match nothing: so it takes a quarter of the time of `\s+`.
    return texts.fill_null("").str.normalize("NFC").str.replace_all(r"\s{2,}|[^\S ]", " ").str.strip_chars()
