"""The tables in Markdown, and the section of the page that holds them."""

from collections.abc import Sequence
from itertools import groupby

from experiments.outcomes.cells import VERDICT_HEADINGS, cells, cost, headings, provenance, verdict_cells
from experiments.outcomes.gather import TableResult
from experiments.outcomes.verdicts import RULE, Verdict, comparisons
from experiments.output import Section, escape, markdown_table
from experiments.regimes import REGIMES

SECTION = Section("<!-- tables:begin -->", "<!-- tables:end -->")


def tables(results: Sequence[TableResult], verdicts: Sequence[Verdict]) -> str:
    """Return how the regimes differ from the papers, the verdicts (those of `all_verdicts`), and all tables, folded by
    regime since they are long.
    """
    regimes = [(regime, list(group)) for regime, group in groupby(results, key=lambda result: result.regime)]
    parts = [RULE]
    parts += [
        f"The trainings at `{regime}`: {differs}" for regime, _ in regimes if (differs := REGIMES[regime].differs)
    ]
    for regime, _ in regimes:
        if found := [one for one in verdicts if one.result.regime == regime]:
            summary = f"<details>\n<summary>Verdicts at {regime}. {comparisons(found)}</summary>"
            parts += [summary, verdict_table(found), "</details>"]
    for regime, group in regimes:
        summary = f"<details>\n<summary>Tables at {regime}: {len(group)} ({cost(group)})</summary>"
        parts += [summary, *map(table, group), "</details>"]
    return "\n\n".join(parts)


def verdict_table(found: Sequence[Verdict]) -> str:
    """Return a table of claims and their verdicts."""
    rows = ([f"`{one.result.table.name}`", *(escape(cell.text) for cell in verdict_cells(one))] for one in found)
    return markdown_table(("table", *VERDICT_HEADINGS), rows, numbers=4)


def table(result: TableResult) -> str:
    """Return one table with its heading and its provenance."""
    rows = ([escape(cell.text) for cell in cells(result, row)] for row in result.rows)
    about = [f"{escape(result.table.source)}.", *map(escape, provenance(result))]
    title = f"#### `{result.table.name}` at `{result.regime}`: {escape(result.table.title)}"
    head = list(map(escape, headings(result)))
    body = markdown_table(head, rows, numbers=len(head) - len(result.table.columns))
    return "\n\n".join([title, " ".join(about), body])
