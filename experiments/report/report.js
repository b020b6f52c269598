"use strict";

// Tables: a click on a heading sorts by it, a second one turns the order round.

function keyOf(row, column) {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
}

function sortBy(table, column) {
  const headings = [...table.tHead.rows[0].cells];
  const order = headings[column].getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => [keyOf(row, column), row]);
  const numeric = rows.some(([key]) => typeof key === "number");
  rows.sort(([a], [b]) => {
    if (!numeric) return sign * a.localeCompare(b);
    if (typeof a === typeof b) return typeof a === "number" ? sign * (a - b) : 0;
    return typeof a === "number" ? -1 : 1; // What has no number stays below, whichever way.
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => sortBy(table, column));
  });
}

// Comparisons: two rows' predictions of one image, one over the other, with a border that is dragged.

for (const compare of document.querySelectorAll(".compare")) {
  const stage = compare.querySelector(".stage");
  const range = compare.querySelector("input");
  const chosen = (side) => compare.querySelector(`select[data-side="${side}"]`).value;

  const show = () => {
    for (const side of ["left", "right"]) {
      const place = `img[data-row="${chosen(side)}"][data-image="${chosen("image")}"]`;
      const from = compare.parentElement.querySelector(place);
      const to = stage.querySelector(`[data-show="${side}"]`);
      to.src = from.src;
      to.alt = `${side}: ${from.alt}`;
    }
  };
  const move = () => stage.style.setProperty("--border", `${range.value}%`);
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    range.value = (100 * (event.clientX - box.left)) / box.width;
    move();
  };

  compare.querySelectorAll("select").forEach((select) => select.addEventListener("change", show));
  range.addEventListener("input", move);
  stage.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) drag(event);
  });
  show();
  move();
}
