"""The HTML page: all in one file, so that it can be sent to somebody, and opened without a network."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from experiments.report.cells import Shown, cells, headings, provenance
from experiments.report.gather import RowResult, TableResult
from experiments.report.pictures import Pictures

HERE = Path(__file__).parent
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}

Plots = tuple[bytes | None, bytes | None]
Pictured = Sequence[tuple[RowResult, Pictures]]


@dataclass(frozen=True)
class Section:
    """A table's part of the page.

    Attributes:
      result: the table.
      pictured: rows with pictures.
      values, curves: plots for light and for dark; None where there is nothing to draw.
    """

    result: TableResult
    pictured: Pictured
    values: Plots
    curves: Plots


def page(sections: Sequence[Section]) -> str:
    """Return the page, style, script and pictures in it."""
    template = Template((HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script=(HERE / "report.js").read_text(encoding="utf-8"),
        contents=_contents([section.result for section in sections]),
        sections="\n".join(map(_section, sections)),
    )


def data_uri(data: bytes, suffix: str) -> str:
    """Return a picture as an address that holds it."""
    return f"data:{MEDIA_TYPES[suffix]};base64,{base64.b64encode(data).decode()}"


def _contents(results: Sequence[TableResult]) -> str:
    parts = []
    for scale in dict.fromkeys(result.scale for result in results):
        links = "".join(
            f'<li><a href="#{escape(result.name)}">{escape(result.table.name)}</a></li>'
            for result in results
            if result.scale == scale
        )
        parts.append(f"<div><strong>{escape(scale)}</strong><ul>{links}</ul></div>")
    return "\n".join(parts)


def _section(section: Section) -> str:
    result = section.result
    about = "".join(f"<p>{escape(line)}</p>" for line in [f"{result.table.source}.", *provenance(result)])
    return f"""<section id="{escape(result.name)}">
<h2>{escape(result.table.title)}</h2>
<p class="name"><code>{escape(result.table.name)}</code> at <code>{escape(result.scale)}</code></p>
<div class="about">{about}</div>
{_table(result)}
{_plot(section.values, f"The numbers of {result.table.name} at {result.scale}, drawn", "The table, drawn")}
{_plot(section.curves, f"Loss of the trainings of {result.table.name} at {result.scale} by step", "Learning curves")}
{_predictions(result, section.pictured)}
</section>"""


def _table(result: TableResult) -> str:
    head = "".join(f'<th scope="col"><button type="button">{escape(text)}</button></th>' for text in headings(result))
    lines = []
    for row in result.rows:
        first, *others = cells(result, row)
        tags = _cell("th", first, ' scope="row"')
        for cell in others:
            tags += _cell("td", cell, ' class="why"' if cell.text and cell.text == row.missing else "")
        lines.append(f"<tr>{tags}</tr>")
    label = escape(f"{result.table.name} at {result.scale}")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def _cell(tag: str, cell: Shown, attributes: str = "") -> str:
    value = "" if cell.number is None else f' data-value="{cell.number!r}"'
    return f"<{tag}{attributes}{value}>{escape(cell.text)}</{tag}>"


def _plot(plots: Plots, alt: str, title: str) -> str:
    light, dark = plots
    if light is None or dark is None:
        return ""
    return (
        f'<details open><summary>{title}</summary><div class="scroll plot" tabindex="0" role="region" '
        f'aria-label="{title}"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{data_uri(dark, ".png")}">'
        f'<img src="{data_uri(light, ".png")}" alt="{escape(alt)}"></picture></div></details>'
    )


def _predictions(result: TableResult, pictured: Pictured) -> str:
    """The images, their truth and what every row makes of them, or why there are none; rows on the same images stand
    together.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[RowResult, Pictures]]] = {}
    for row, pictures in pictured:
        groups.setdefault((pictures.data, pictures.names), []).append((row, pictures))
    if not groups and any(row.trainings for row in result.rows):
        return '<p class="name">No predictions: no run directory of these rows was at hand.</p>'
    title = '<h3>Predictions</h3><p class="name">Of the first seed whose run is at hand.</p>'
    return "".join(title + _group(group) for group in groups.values())


def _group(group: Pictured) -> str:
    (_, first), rows = group[0], [row.label for row, _ in group]
    strips = []
    for number, name in enumerate(first.names):
        columns = [("image", "image", first.files("image")), ("truth", "truth", first.files("truth"))]
        columns += [(str(index), row.label, own.files("prediction")) for index, (row, own) in enumerate(group)]
        figures = "".join(
            f'<figure><img src="{_source(files[number])}" alt="{escape(name)}: {escape(caption)}" '
            f'data-column="{column}" data-image="{number}"><figcaption>{escape(caption)}</figcaption></figure>'
            for column, caption, files in columns
        )
        strips.append(f'<div class="strip">{figures}</div>')
    present = dict.fromkeys(one for _, own in group for one in own.classes)
    key = "".join(
        f'<li><span style="background:{escape(colour)}"></span>{escape(name)}</li>' for name, colour in present
    )
    slider = _slider(rows, first.names) if len(rows) > 1 else ""
    return f'<div class="predictions">{slider}{"".join(strips)}<ul class="classes">{key}</ul></div>'


def _slider(rows: Sequence[str], images: Sequence[str]) -> str:
    """Two rows on one image, and a range that moves the border between them; `report.js` fills in the pictures."""
    return f"""<div class="compare">
<div class="choices">
<label>Left <select data-choice="left">{_options(rows, 0)}</select></label>
<label>Right <select data-choice="right">{_options(rows, len(rows) - 1)}</select></label>
<label>Image <select data-choice="image">{_options(images, 0)}</select></label>
</div>
<div class="stage"><img data-show="left" alt=""><img data-show="right" alt=""></div>
<label class="border">Border <input type="range" min="0" max="100" value="50"></label>
<div class="beside">
<figure><img data-show="image" alt=""><figcaption>image</figcaption></figure>
<figure><img data-show="truth" alt=""><figcaption>truth</figcaption></figure>
</div>
</div>"""


def _options(texts: Iterable[str], chosen: int) -> str:
    return "".join(
        f'<option value="{index}"{" selected" if index == chosen else ""}>{escape(text)}</option>'
        for index, text in enumerate(texts)
    )


def _source(file: Path) -> str:
    return data_uri(file.read_bytes(), file.suffix)
