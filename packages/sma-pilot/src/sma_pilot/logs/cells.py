"""How the cells of a raw column are read: as numbers, as words, as nothing."""

import polars as pl

from sma_pilot.logs.files import LogFile

_TRUE, _FALSE = ["true", "True", "TRUE"], ["false", "False", "FALSE"]


def word(file: LogFile, column: str) -> pl.Expr:
    """Read a column as texts; null where there is none."""
    text = file.column(column).cast(pl.String)
    if file.dtypes[column] != pl.String:
        return text
    text = text.str.strip_chars()
    return pl.when(text != "").then(text)


def number(file: LogFile, column: str) -> pl.Expr:
    """Read a column as Float64; null where there is no value, or one that is no number."""
    raw = file.column(column)
    if file.dtypes[column] == pl.String:
        raw = raw.str.strip_chars()
        if file.separator == ";":  # the separator of countries that write 12,5
            raw = raw.str.replace(",", ".", literal=True)
        truth = pl.when(raw.is_in(_TRUE)).then(1.0).when(raw.is_in(_FALSE)).then(0.0)
        return raw.cast(pl.Float64, strict=False).fill_null(truth)
    return raw.cast(pl.Float64)


def is_filled(file: LogFile, column: str) -> pl.Expr:
    """Tell whether a cell holds anything."""
    raw = file.column(column)
    if file.dtypes[column] == pl.String:
        return raw.is_not_null() & (raw.str.strip_chars() != "")
    if file.dtypes[column].is_float():
        return raw.is_not_null() & raw.is_not_nan()
    return raw.is_not_null()
