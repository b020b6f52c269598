"""The committed results of the tables."""

from deeplab_jax.errors import UserError
from experiments import ROOT
from experiments.outcomes.files import RESULTS
from experiments.outcomes.gather import TableResult, read_tables


def committed_results(table: str) -> list[TableResult]:
    """Return the committed results of a table, one for each regime that has any."""
    try:
        tables, _ = read_tables(ROOT / RESULTS, ())
    except UserError:
        return []
    return [result for result in tables if result.table.name == table]
