"""What a study says, for people and programs: a text table, a page, parquet files."""

from sma_eval.report.frames import (
    arms_frame,
    effects_frame,
    fronts_frame,
    rates_frame,
    trials_frame,
    write_parquet,
)
from sma_eval.report.tables import legend, markdown_table, table_cells, text_table

__all__ = [
    "arms_frame",
    "effects_frame",
    "fronts_frame",
    "legend",
    "markdown_table",
    "rates_frame",
    "table_cells",
    "text_table",
    "trials_frame",
    "write_parquet",
]
