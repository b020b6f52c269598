"""The papers' tables by name. A new one is a file of this folder and a line here."""

from importlib import import_module

from experiments.tables.table import Row, Table

__all__ = ["TABLES", "Row", "Table"]

NAMES = (
    "v3_table1",
    "v3_table2",
    "v3_table3",
    "v3_table4",
    "v3_table5",
    "v3_table6",
    "v3_table8",
    "v3_table9",
    "v3_table10",
    "v3_cityscapes",
    "v3_figure4",
    "v3plus_table1",
    "v3plus_table2",
    "v3plus_table3",
    "v3plus_table5",
    "v3plus_table7",
    "v3plus_figure5",
    "extra_norm",
    "extra_loss",
    "extra_seeds",
    "extra_parts",
)
TABLES: dict[str, Table] = {name: import_module(f"{__name__}.{name}").TABLE for name in NAMES}
