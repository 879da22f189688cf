"""Scripts that put no spaces between words: Han, kana, and those of Thai, Lao, Khmer, Burmese and their neighbours."""

import polars as pl

UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana and what stands among them
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""Their characters, as ranges for a regular expression's brackets. Not those of Korean, which has spaces."""


def shorter(texts: pl.Series, characters: int) -> pl.Series:
    """Which texts have fewer `characters` than this: `[n]` Boolean.

    A character of these scripts counts as two: two of Han are a word.
    """
    short = texts.str.len_chars() < characters
    if short.any():  # few are, and only they need to be looked at again
        rows = short.arg_true()
        again = texts.gather(rows)
        short = short.scatter(rows, again.str.len_chars() + again.str.count_matches(f"[{UNSPACED}]") < characters)
    return short
