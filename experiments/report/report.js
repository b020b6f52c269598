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

// The kernel: how many of the nine weights of a 3x3 kernel lie on a map, at each position of its centre.

const VALID = { 9: "#fde725", 6: "#5ec962", 4: "#21918c", 3: "#3b528b", 2: "#443983", 1: "#440154" };

for (const kernel of document.querySelectorAll(".kernel")) {
  const [rate, side] = kernel.querySelectorAll("input");
  const canvas = kernel.querySelector("canvas");

  const draw = () => {
    const n = Number(side.value);
    const r = Number(rate.value);
    const along = (p) => 1 + (p >= r) + (p + r < n); // valid weights along one axis
    const positions = Object.fromEntries(Object.keys(VALID).map((weights) => [weights, 0]));
    canvas.width = canvas.height = n;
    const brush = canvas.getContext("2d");
    for (let y = 0; y < n; y += 1) {
      for (let x = 0; x < n; x += 1) {
        const weights = along(x) * along(y);
        positions[weights] += 1;
        brush.fillStyle = VALID[weights];
        brush.fillRect(x, y, 1, 1);
      }
    }
    for (const input of [rate, side]) input.parentElement.querySelector("output").textContent = input.value;
    const lines = Object.entries(VALID).reverse().filter(([weights]) => positions[weights]).map(([weights, colour]) => {
      const line = document.createElement("li");
      const patch = document.createElement("span");
      patch.style.background = colour;
      line.append(patch, `${weights} valid: ${((100 * positions[weights]) / n ** 2).toFixed(1)}%`);
      return line;
    });
    kernel.querySelector("ul").replaceChildren(...lines);
  };

  for (const input of [rate, side]) input.addEventListener("input", draw);
  draw();
}
