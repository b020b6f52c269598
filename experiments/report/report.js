"use strict";

// Tables: a click on a heading sorts by it, a second click reverses the order, a third one restores the paper's order.

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function keyOf(row, column) {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
}

function sorted(rows, column, order) {
  const sign = order === "ascending" ? 1 : -1;
  const keyed = rows.map((row) => [keyOf(row, column), row]);
  const numeric = keyed.some(([key]) => typeof key === "number");
  keyed.sort(([a], [b]) => {
    if (!numeric) return sign * a.localeCompare(b);
    if (typeof a === typeof b) return typeof a === "number" ? sign * (a - b) : 0;
    return typeof a === "number" ? -1 : 1; // Cells without a number stay below, in both orders.
  });
  return keyed.map(([, row]) => row);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const order = NEXT[heading.getAttribute("aria-sort") ?? "none"];
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      if (order !== "none") heading.setAttribute("aria-sort", order);
      table.tBodies[0].append(...(order === "none" ? rows : sorted(rows, column, order)));
    });
  });
}

// Comparisons: two rows' predictions of one image, one over the other, with a border that is dragged.

for (const compare of document.querySelectorAll(".compare")) {
  const stage = compare.querySelector(".stage");
  const range = compare.querySelector("input");
  const chosen = (name) => compare.querySelector(`select[data-choice="${name}"]`).value;

  const show = () => {
    const columns = { left: chosen("left"), right: chosen("right"), image: "image", truth: "truth" };
    for (const [name, column] of Object.entries(columns)) {
      const place = `img[data-column="${column}"][data-image="${chosen("image")}"]`;
      const from = compare.parentElement.querySelector(`.strip ${place}`);
      const to = compare.querySelector(`img[data-show="${name}"]`);
      to.src = from.src;
      to.alt = from.alt;
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
