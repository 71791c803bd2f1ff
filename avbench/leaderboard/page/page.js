"use strict";
// Everything that comes from an entry is set as text, never as markup.
const boards = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const make = (tag, text, attributes = {}) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
const draw = (tag, attributes, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const missing = (value) => value === null || value === undefined;
const fixed = (value, digits = 2) => (missing(value) ? "–" : value.toFixed(digits));
const megabytes = (bytes) => (missing(bytes) ? "–" : fixed(bytes / 1e6, 1));
const standing = (row) => [row.verified ? "✓ verified" : "", row.remark].filter(Boolean).join(", ");

// Title, key to sort and export by, whether a number, text shown.
const columns = [
  { title: "Rank", key: (r) => r.rank, number: true, text: (r) => (r.rank === null ? "–" : r.shown) },
  { title: "Entry", key: (r) => r.name, text: (r) => r.name },
  { title: "Method", key: (r) => r.method, text: (r) => r.method },
  { title: "Standing", key: standing, text: standing },
  { title: "Input", key: (r) => r.modality, text: (r) => r.modality },
  { title: "Features", key: (r) => r.features, text: (r) => r.features ?? "–" },
  { title: "Values", key: (r) => r.features_hash, text: (r) => (r.features_hash ?? "–").slice(0, 8) },
  { title: "Mean accuracy", key: (r) => r.mean_accuracy, number: true,
    text: (r) => fixed(r.mean_accuracy) + (missing(r.std) ? "" : " ± " + fixed(r.std)) },
  { title: "Forgetting", key: (r) => r.average_forgetting, number: true, text: (r) => fixed(r.average_forgetting) },
  { title: "Last accuracy", key: (r) => r.last_accuracy, number: true, text: (r) => fixed(r.last_accuracy) },
  { title: "Seeds", key: (r) => r.seeds, number: true, text: (r) => r.seeds ?? "–" },
  { title: "Exemplars", key: (r) => r.exemplars, number: true, text: (r) => r.exemplars ?? "–" },
  { title: "Exemplars, MB", key: (r) => r.exemplar_bytes, number: true, text: (r) => megabytes(r.exemplar_bytes) },
  { title: "Checkpoint, MB", key: (r) => r.stored_bytes, number: true, text: (r) => megabytes(r.stored_bytes) },
  { title: "s/seed", key: (r) => r.seconds, number: true, text: (r) => fixed(r.seconds, 0) },
  { title: "Pre-training", key: (r) => r.pretraining, text: (r) => r.pretraining ?? "–", wrap: true },
  { title: "Authors or source", key: (r) => (r.authors ?? [r.source]).join("; "),
    text: (r) => (r.authors ?? [r.source]).join(", "), wrap: true },
];
const shapes = ["", "8 4", "2 4", "12 4 2 4"];
let board = boards[0];
let sorted = { column: null, down: false };
let filling;
const chosen = new Map(boards.map((b) => [b, new Set()]));

function shownRows() {
  const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = board.rows.filter((row) => {
    // Features have a choice of their own, and a hash may hold any word.
    const text = columns.filter((c) => !["Features", "Values"].includes(c.title)).map((c) => c.text(row)).join(" ").toLowerCase();
    return words.every((word) => text.includes(word))
      && (!at("modality").value || row.modality === at("modality").value)
      && (!at("preset").value || row.features === at("preset").value)
      && (!at("verified").checked || row.verified);
  });
  if (sorted.column === null) return rows;
  const { key } = sorted.column;
  const sign = sorted.down ? -1 : 1;
  return rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    // What is not known comes last, whichever way.
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
  });
}

function header() {
  const line = at("board").tHead.rows[0];
  line.replaceChildren(make("th", "Plot", { scope: "col" }));
  for (const column of columns) {
    const cell = make("th", undefined, { scope: "col" });
    if (column.number) cell.className = "number";
    const active = sorted.column === column;
    cell.setAttribute("aria-sort", active ? (sorted.down ? "descending" : "ascending") : "none");
    const button = make("button", column.title + (active ? (sorted.down ? " ▾" : " ▴") : ""), { type: "button" });
    button.addEventListener("click", () => {
      sorted = { column, down: active ? !sorted.down : Boolean(column.number) && column.title !== "Rank" };
      header();
      body();
      line.cells[columns.indexOf(column) + 1].firstChild.focus();
    });
    cell.append(button);
    line.append(cell);
  }
  line.append(make("th", "Matrix", { scope: "col" }));
}

function tableRow(row) {
  const line = make("tr");
  if (row.rank === null) line.className = "apart";
  const pick = make("td");
  if (row.accuracy_per_step) {
    const box = make("input", undefined, { type: "checkbox", "aria-label": "plot " + row.name });
    box.checked = chosen.get(board).has(row);
    box.addEventListener("change", () => {
      chosen.get(board)[box.checked ? "add" : "delete"](row);
      curves();
    });
    pick.append(box);
  }
  line.append(pick);
  for (const column of columns) {
    const cell = make("td");
    cell.className = column.number ? "number" : column.wrap ? "text" : "";
    const text = String(column.text(row));
    if (column.title === "Method" && /^https?:\/\//.test(row.url)) {
      cell.append(make("a", text, { href: row.url, rel: "noopener noreferrer nofollow" }));
    } else if (column.title === "Standing" && row.verified) {
      cell.append(make("span", "✓ verified", { class: "badge" }), row.remark ? ", " + row.remark : "");
    } else {
      cell.textContent = text;
    }
    line.append(cell);
  }
  const last = make("td");
  if (row.accuracy_matrix) {
    const button = make("button", "Matrix", { type: "button", "aria-label": "accuracy matrix of " + row.name });
    button.addEventListener("click", () => matrix(row));
    last.append(button);
  }
  line.append(last);
  return line;
}

function body() {
  const rows = shownRows();
  const table = at("board").tBodies[0];
  // A long table takes most of a second to lay out: its first rows are seen before that.
  const fill = (from, to) => {
    table.append(...rows.slice(from, to).map(tableRow));
    if (to < rows.length) filling = setTimeout(fill, 0, to, rows.length);
  };
  clearTimeout(filling);
  table.replaceChildren();
  fill(0, 100);
  at("count").textContent = rows.length + " of " + board.rows.length + " entries";
}

function curves() {
  const rows = [...chosen.get(board)];
  at("curves").hidden = rows.length === 0;
  if (rows.length === 0) return;
  const [width, height, left, bottom] = [640, 320, 40, 36];
  const steps = rows[0].accuracy_per_step.length;
  const x = (step) => left + ((width - left - 12) * (steps > 1 ? step / (steps - 1) : 0.5));
  const y = (value) => 10 + ((height - bottom - 10) * (100 - value)) / 100;
  const names = rows.map((row) => row.name + " " + row.accuracy_per_step.map((v) => fixed(v, 1)).join(" "));
  const svg = draw("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Accuracy per step: " + names.join("; ") });
  for (let value = 0; value <= 100; value += 20) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - 12, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, value));
  }
  for (let step = 0; step < steps; step += 1) {
    svg.append(draw("text", { x: x(step), y: height - 16, "text-anchor": "middle" }, step + 1));
  }
  svg.append(draw("text", { x: width / 2, y: height - 2, "text-anchor": "middle" }, "step"));
  const legend = [];
  rows.forEach((row, number) => {
    const look = { class: "curve c" + (number % 6), "stroke-dasharray": shapes[Math.floor(number / 6) % 4] };
    const points = row.accuracy_per_step.map((value, step) => x(step) + "," + y(value)).join(" ");
    svg.append(draw("polyline", { ...look, points }));
    const key = draw("svg", { viewBox: "0 0 32 12", "aria-hidden": "true" });
    key.append(draw("line", { ...look, x1: 0, x2: 32, y1: 6, y2: 6 }));
    const item = make("li");
    item.append(key, " " + row.name);
    legend.push(item);
  });
  at("plot").replaceChildren(svg);
  at("legend").replaceChildren(...legend);
}

function matrix(row) {
  at("matrix-title").textContent = row.name + ": accuracy in %, after each step on each step's classes";
  const head = make("tr");
  head.append(make("th", "after step", { scope: "col" }));
  row.accuracy_matrix.forEach((_, task) => head.append(make("th", "step " + (task + 1), { scope: "col", class: "number" })));
  const lines = row.accuracy_matrix.map((values, step) => {
    const line = make("tr");
    line.append(make("th", step + 1, { scope: "row" }));
    values.forEach((value) => line.append(make("td", fixed(value), { class: "number" })));
    return line;
  });
  at("cells").replaceChildren(head, ...lines);
  at("matrix").showModal();
}

function csv() {
  const field = (value) => {
    if (missing(value)) return "";
    if (typeof value === "number") return String(value);
    // A spreadsheet must not take text for a formula.
    const text = /^[\s=+\-@|%\uff1d\uff0b\uff0d\uff20]/.test(value) ? "'" + value : value;
    return '"' + text.replaceAll('"', '""') + '"';
  };
  const lines = [columns.map((c) => field(c.title)), ...shownRows().map((r) => columns.map((c) => field(c.key(r))))];
  const blob = new Blob([lines.map((line) => line.join(",")).join("\r\n") + "\r\n"], { type: "text/csv" });
  const link = make("a", undefined, { href: URL.createObjectURL(blob), download: board.benchmark + ".csv" });
  link.click();
  URL.revokeObjectURL(link.href);
}

function options(select, values) {
  const known = [...new Set(values.filter((value) => !missing(value)))].sort();
  select.replaceChildren(make("option", "all", { value: "" }), ...known.map((v) => make("option", v, { value: v })));
}

function open(next) {
  board = next;
  sorted = { column: null, down: false };
  for (const tab of at("tabs").children) {
    const selected = tab.dataset.benchmark === board.benchmark;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
  }
  at("panel").setAttribute("aria-labelledby", "tab-" + board.benchmark);
  at("title").textContent = board.title || board.benchmark;
  at("warnings").replaceChildren(...board.warnings.map((text) => make("p", "Warning: " + text + ".")));
  options(at("modality"), board.rows.map((row) => row.modality));
  options(at("preset"), board.rows.map((row) => row.features));
  header();
  body();
  curves();
}

boards.forEach((each, number) => {
  const tab = make("button", each.benchmark, {
    type: "button", role: "tab", id: "tab-" + each.benchmark, "aria-controls": "panel", "data-benchmark": each.benchmark,
  });
  tab.addEventListener("click", () => open(each));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: number + 1, ArrowLeft: number - 1, Home: 0, End: boards.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = (to + boards.length) % boards.length;
    open(boards[next]);
    at("tabs").children[next].focus();
  });
  at("tabs").append(tab);
});
for (const id of ["filter", "modality", "preset", "verified"]) at(id).addEventListener("input", body);
at("csv").addEventListener("click", csv);
open(boards.find((each) => "#" + each.benchmark === location.hash) ?? board);
