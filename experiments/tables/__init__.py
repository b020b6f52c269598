"""The papers' tables by name."""

from experiments.tables import (
    extra_loss,
    extra_norm,
    extra_seeds,
    v3_cityscapes,
    v3_figure4,
    v3_table1,
    v3_table2,
    v3_table3,
    v3_table4,
    v3_table5,
    v3_table6,
    v3_table8,
    v3_table9,
    v3_table10,
    v3plus_figure5,
    v3plus_table1,
    v3plus_table2,
    v3plus_table3,
    v3plus_table5,
    v3plus_table7,
)
from experiments.tables.table import Row, Table

__all__ = ["TABLES", "Row", "Table"]

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        v3_table1.TABLE,
        v3_table2.TABLE,
        v3_table3.TABLE,
        v3_table4.TABLE,
        v3_table5.TABLE,
        v3_table6.TABLE,
        v3_table8.TABLE,
        v3_table9.TABLE,
        v3_table10.TABLE,
        v3_cityscapes.TABLE,
        v3_figure4.TABLE,
        v3plus_table1.TABLE,
        v3plus_table2.TABLE,
        v3plus_table3.TABLE,
        v3plus_table5.TABLE,
        v3plus_table7.TABLE,
        v3plus_figure5.TABLE,
        extra_norm.TABLE,
        extra_loss.TABLE,
        extra_seeds.TABLE,
    )
}
