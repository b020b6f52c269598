"""The tables in Markdown, and the mark of the README's section that holds them."""

from collections.abc import Sequence
from itertools import groupby

from experiments.report.cells import cells, cost, headings, provenance
from experiments.report.gather import TableResult
from experiments.sections import Section

SECTION = Section("<!-- tables:begin -->", "<!-- tables:end -->")


def tables(results: Sequence[TableResult]) -> str:
    """Return all tables, those of a scale folded away: many rows stand between a reader and what follows."""
    parts = []
    for scale, group in groupby(results, key=lambda result: result.scale):
        of_scale = list(group)
        summary = f"<details>\n<summary>Tables at {scale}: {len(of_scale)} ({cost(of_scale)})</summary>"
        parts += [summary, *map(table, of_scale), "</details>"]
    return "\n\n".join(parts)


def table(result: TableResult) -> str:
    """Return one table under its heading, and what is to be said of it."""
    columns = len(result.table.columns)
    head = headings(result)
    lines = [_line(head), "|" + "---|" * columns + "---:|" * (len(head) - columns)]
    lines += [_line([cell.text for cell in cells(result, row)]) for row in result.rows]
    about = [f"{escape(result.table.source)}.", *map(escape, provenance(result))]
    title = f"#### `{result.table.name}` at `{result.scale}`: {escape(result.table.title)}"
    return "\n\n".join([title, " ".join(about), "\n".join(lines)])


def escape(text: str) -> str:
    """Return a text that stays in its cell and is no mark-up."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(map(escape, texts))} |"
