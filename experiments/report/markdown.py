"""The tables in Markdown, and the marks of the section that holds them."""

from collections.abc import Sequence
from itertools import groupby

from experiments.output import Section, escape, markdown_table
from experiments.report.cells import cells, cost, headings, provenance
from experiments.report.gather import TableResult

SECTION = Section("<!-- tables:begin -->", "<!-- tables:end -->")


def tables(results: Sequence[TableResult]) -> str:
    """Return all tables, those of a regime folded away: many rows stand between a reader and what follows."""
    parts = []
    for regime, group in groupby(results, key=lambda result: result.regime):
        own = list(group)
        summary = f"<details>\n<summary>Tables at {regime}: {len(own)} ({cost(own)})</summary>"
        parts += [summary, *map(table, own), "</details>"]
    return "\n\n".join(parts)


def table(result: TableResult) -> str:
    """Return one table under its heading, and what is to be said of it."""
    rows = ([escape(cell.text) for cell in cells(result, row)] for row in result.rows)
    about = [f"{escape(result.table.source)}.", *map(escape, provenance(result))]
    title = f"#### `{result.table.name}` at `{result.regime}`: {escape(result.table.title)}"
    head = list(map(escape, headings(result)))
    body = markdown_table(head, rows, numbers=len(head) - len(result.table.columns))
    return "\n\n".join([title, " ".join(about), body])
