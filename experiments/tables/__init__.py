"""The papers' tables by name. A new table needs a file in this folder and a line here."""

import re
import runpy
from importlib import import_module
from pathlib import Path

from deeplab_jax.errors import UserError, did_you_mean
from experiments.tables.table import MEASURES, Claim, Row, Table

__all__ = ["TABLES", "Claim", "Row", "Table", "find_table"]

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
    "extra_context",
    "extra_recipes",
    "extra_noise",
    "extra_rates",
)
TABLES: dict[str, Table] = {name: import_module(f"{__name__}.{name}").TABLE for name in NAMES}


# Keys that no row sets, and what to do instead.
NOT_IN_ROWS = {
    "init": "the runner sets it; give --init",
    "module": "give the command --module FILE",
    "data.dir": "all rows read the folder of --data_dir; leave it out",
    "train.seed": "the runner counts the seeds of a row from 0; leave it out, or give their number with --seeds",
    "train.patience": "the trainings of a table have one length; leave it out",
}


def find_table(name: str) -> Table:
    """Return the table of this name, or the `TABLE` of a user's Python file.

    Raises:
      UserError: no table has this name; the file cannot be run; its table is missing, or has a name that is taken; or
        its rows and claims do not fit together.
    """
    if name in TABLES:
        return TABLES[name]
    if not name.endswith(".py"):
        raise UserError(f"table {name!r} is not known: {did_you_mean(name, TABLES)}")
    if not Path(name).is_file():
        raise UserError(f"{name}: no such file; correct the path")
    try:
        table = runpy.run_path(name).get("TABLE")
    except Exception as error:
        raise UserError(f"{name}: it cannot be run ({type(error).__name__}: {error}); fix the file") from None
    if not isinstance(table, Table):
        raise UserError(f"{name}: it holds no TABLE; experiments/tables/v3_table5.py shows how to write one")
    if table.name in TABLES or not re.fullmatch(r"\w+", table.name, re.ASCII):
        raise UserError(
            f"{name}: the name {table.name!r} is taken, or is no name of a file; give the table another name"
        )
    if fault := fault_of(table):
        raise UserError(f"{name}: {fault}")
    return table


def fault_of(table: Table) -> str:
    """Return what does not fit together in a table, and the fix; "" where all does."""
    for row in table.rows:
        if not isinstance(row.cells, tuple) or len(row.cells) != len(table.columns):
            return f"row {row.cells!r}: give a tuple with one cell for each of the columns {table.columns}"
        if row.train and "model.name" not in row.train:
            return f'row {row.cells} trains no model; give its train a "model.name", such as "deeplabv3_resnet101"'
        for key in row.train:
            if key in NOT_IN_ROWS:
                return f"row {row.cells} sets {key}: {NOT_IN_ROWS[key]}"
        if not all(table.row_name(row).split("-")):
            return f"row {row.cells}: its name is made of its cells; give each a letter from a to z or a digit"
    names = [table.row_name(row) for row in table.rows]
    if twice := [name for name in names if names.count(name) > 1]:
        return f"two rows have the name {twice[0]!r}, which is made of their cells; change a cell of one"
    rows = [row.cells for row in table.rows]
    for claim in table.claims:
        for cells in (claim.better, claim.worse):
            if cells not in rows:
                return f"claim {claim.says!r} is about {cells}: {did_you_mean(str(cells), rows)}"
    for measure in (*table.measures, *(claim.measure for claim in table.claims)):
        if measure not in MEASURES:
            return f"measure {measure!r} is not known: {did_you_mean(measure, MEASURES)}"
    return ""
