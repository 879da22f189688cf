"""Cleaning of texts, before their keys are computed."""

import polars as pl


def clean(texts: pl.Expr) -> pl.Expr:
    """Unicode NFC, each run of white space a single space, none at the ends; null becomes empty."""
    return texts.fill_null("").str.normalize("NFC").str.replace_all(r"\s+", " ").str.strip_chars()
