"""Tables in files: .parquet, .csv, .jsonl; and lines of text or JSON on standard input and output."""

from routerjax.tables.columns import (
    Texts,
    first_appearance,
    flag_column,
    label_column,
    matrix_column,
    number_column,
    require_columns,
    rows_not_finite,
    text_column,
)
from routerjax.tables.json_lines import json_objects
from routerjax.tables.prompts import INPUT_FORMATS, PromptTable, open_prompts
from routerjax.tables.read import ENDINGS, OpenTable, open_table, read_table
from routerjax.tables.write import STANDARD_OUTPUT, require_writable, table_writer, write_table

__all__ = [
    "ENDINGS",
    "INPUT_FORMATS",
    "STANDARD_OUTPUT",
    "OpenTable",
    "PromptTable",
    "Texts",
    "first_appearance",
    "flag_column",
    "json_objects",
    "label_column",
    "matrix_column",
    "number_column",
    "open_prompts",
    "open_table",
    "read_table",
    "require_columns",
    "require_writable",
    "rows_not_finite",
    "table_writer",
    "text_column",
    "write_table",
]
