"""TODO."""

import polars as pl


def clean(texts: pl.Expr) -> pl.Expr:
    """Unicode NFC, every run of white space one space, none at the ends; null becomes empty."""
    return texts.fill_null("").str.normalize("NFC").str.replace_all(r"\s+", " ").str.strip_chars()
